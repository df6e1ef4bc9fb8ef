//! Interface names and hardware addresses.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use super::Error;

/// The name of an interface, checked as the kernel checks it.
///
/// Source: Linux, `dev_valid_name`; `IFNAMSIZ` is 16 with the final NUL.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IfName(String);

impl IfName {
    /// Checks `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Name`]: empty, longer than 15 bytes, `.`, `..`, or holding '/', ':' or white space.
    pub fn new(name: impl Into<String>) -> Result<Self, Error> {
        let name = name.into();
        let fits = (1..=15).contains(&name.len()) && name != "." && name != "..";
        let clean = name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
        if fits && clean { Ok(Self(name)) } else { Err(Error::Name(name)) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as the kernel keeps it: 16 bytes, padded with NUL.
    pub fn padded(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..self.0.len()].copy_from_slice(self.0.as_bytes());
        bytes
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A 48-bit hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// `02:42:` and the four bytes of `address`: unique wherever the address is, and locally
    /// administered. The form container tools have used for years.
    pub fn from_ipv4(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0x42, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let invalid = || InvalidMac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(invalid)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() || bytes[0] & 1 == 1 {
            return Err(invalid()); // a group address cannot be a source
        }
        Ok(Self(bytes))
    }
}

/// Text that is no hardware address of one interface.
#[derive(Debug, thiserror::Error)]
#[error("invalid MAC address {0:?}")]
pub struct InvalidMac(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_checked() {
        let cases = [
            ("eth0", true),
            ("a23456789012345", true),
            ("a234567890123456", false),
            ("", false),
            ("..", false),
            ("a/b", false),
            ("a:b", false),
            ("a b", false),
            ("é", false),
        ];
        for (name, valid) in cases {
            assert_eq!(IfName::new(name).is_ok(), valid, "{name:?}");
        }
    }

    #[test]
    fn hardware_addresses_read_as_written() {
        let mac = Mac::from_ipv4(Ipv4Addr::new(172, 17, 0, 2));
        assert_eq!(mac.to_string(), "02:42:ac:11:00:02");
        assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
        for bad in
            ["", "02:42:ac:11:00", "02:42:ac:11:00:02:03", "01:00:00:00:00:00", "g2:42:ac:11:00:02"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
