//! Layer archives by hand: names and fields are taken as they are, so they can be wrong too.

pub use tar::Header;

/// One header. `flag` is the type: `b'0'` a file, `b'1'` a hard link, `b'2'` a symbolic link, `b'3'`
/// and `b'4'` devices, `b'5'` a directory, `b'6'` a pipe.
pub fn header(name: &[u8], flag: u8, size: u64, link: &[u8]) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    let old = header.as_old_mut();
    let (name, link) = (&name[..name.len().min(100)], &link[..link.len().min(100)]);
    old.name[..name.len()].copy_from_slice(name);
    old.linkname[..link.len()].copy_from_slice(link);
    old.linkflag = [flag];
    header.set_size(size);
    header.set_mode(if flag == b'5' { 0o755 } else { 0o644 });
    header.set_mtime(1_700_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    header
}

/// An archive in the making.
#[derive(Clone, Debug, Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    /// A header and its data.
    #[must_use]
    pub fn raw(mut self, header: &tar::Header, data: &[u8]) -> Self {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// A member with the usual attributes.
    #[must_use]
    pub fn member(self, name: &str, flag: u8, link: &str, data: &[u8]) -> Self {
        let header = header(name.as_bytes(), flag, data.len() as u64, link.as_bytes());
        self.raw(&header, data)
    }

    /// A member whose header is changed before it is written.
    #[must_use]
    pub fn with(self, name: &str, flag: u8, change: impl FnOnce(&mut tar::Header)) -> Self {
        let mut header = header(name.as_bytes(), flag, 0, b"");
        change(&mut header);
        header.set_cksum();
        self.raw(&header, b"")
    }

    /// A directory.
    #[must_use]
    pub fn dir(self, name: &str) -> Self {
        self.member(name, b'5', "", b"")
    }

    /// A file.
    #[must_use]
    pub fn file(self, name: &str, data: &str) -> Self {
        self.member(name, b'0', "", data.as_bytes())
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, name: &str, to: &str) -> Self {
        self.member(name, b'2', to, b"")
    }

    /// A hard link.
    #[must_use]
    pub fn hardlink(self, name: &str, to: &str) -> Self {
        self.member(name, b'1', to, b"")
    }

    /// PAX records for the next member.
    #[must_use]
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length += 1;
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(&header(b"pax", b'x', data.len() as u64, b""), &data)
    }

    /// The archive with its end marker.
    #[must_use]
    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }

    /// The archive as far as it goes, without an end.
    #[must_use]
    pub fn unfinished(self) -> Vec<u8> {
        self.0
    }
}
