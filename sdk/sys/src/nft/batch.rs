//! Batches of element changes, and reading elements back.

use std::fmt;
use std::net::IpAddr;

use rustix::io::Errno;

use super::Error;
use crate::netlink::wire::{ACK, CREATE, DUMP, Writer, attributes, find, text, u32_at};
use crate::netlink::{self, IfName, Socket};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const FAMILY_INET: u8 = 1;

const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_ELEMENT: u16 = 12;
const GET_ELEMENT: u16 = 13;
const DELETE_ELEMENT: u16 = 14;

const TABLE_NAME: u16 = 1;
const TABLE_USERDATA: u16 = 6;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_KEY_END: u16 = 10;
const DATA_VALUE: u16 = 1;
const FLAG_INTERVAL_END: u32 = 1;

/// How often a dump is tried when the set changes meanwhile.
const DUMP_TRIES: usize = 8;

/// The key or value of an element: fields in the order of the set's type, each padded to four bytes.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Vec<u8>);

impl Key {
    /// Without any field.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an address: `ipv4_addr` or `ipv6_addr`.
    #[must_use]
    pub fn ip(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => self.field(&v4.octets()),
            IpAddr::V6(v6) => self.field(&v6.octets()),
        }
    }

    /// Appends an `ifname`.
    #[must_use]
    pub fn ifname(self, name: &IfName) -> Self {
        self.field(&name.padded())
    }

    /// Appends an `inet_proto`: 6 TCP, 17 UDP, 132 SCTP.
    #[must_use]
    pub fn protocol(self, number: u8) -> Self {
        self.field(&[number])
    }

    /// Appends an `inet_service`.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.field(&port.to_be_bytes())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn field(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize((self.0.len() + 3) & !3, 0);
        self
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// An element as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Element {
    /// Its key; the first of a range.
    pub key: Key,
    /// The last key of a range in a set of several fields.
    pub last: Option<Key>,
    /// Its value, in a map.
    pub value: Option<Key>,
    /// In an interval set of one field: the first key *behind* a range.
    pub ends_interval: bool,
}

#[derive(Clone, Debug)]
enum Operation {
    Element {
        add: bool,
        set: &'static str,
        element: Element,
    },
    /// `[first, behind)` in an interval set of one field.
    Interval {
        add: bool,
        set: &'static str,
        first: Key,
        behind: Option<Key>,
    },
    DeleteTable,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Element { add: true, set, .. } | Self::Interval { add: true, set, .. } => {
                write!(f, "add an element to {set}")
            }
            Self::Element { set, .. } | Self::Interval { set, .. } => {
                write!(f, "delete an element of {set}")
            }
            Self::DeleteTable => f.write_str("delete the table"),
        }
    }
}

/// Changes that happen together or not at all.
#[derive(Clone, Debug)]
pub struct Batch {
    table: &'static str,
    operations: Vec<Operation>,
}

impl Batch {
    /// An empty batch on table `inet <table>`.
    pub fn new(table: &'static str) -> Self {
        Self { table, operations: Vec::new() }
    }

    /// How many operations it holds; an operation's number is its place from 0.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Adds `key` to a set. Adding what is there already is fine.
    pub fn add(&mut self, set: &'static str, key: Key) {
        self.element(true, set, key, None, None);
    }

    /// Adds `key` → `value` to a map. The same pair again is fine, another value is a conflict.
    pub fn add_entry(&mut self, map: &'static str, key: Key, value: Key) {
        self.element(true, map, key, None, Some(value));
    }

    /// Adds the keys from `first` to `last` to an interval set of several fields.
    pub fn add_range(&mut self, set: &'static str, first: Key, last: Key) {
        self.element(true, set, first, Some(last), None);
    }

    /// Adds the keys from `first` up to, not including, `behind` to an interval set of one field;
    /// without `behind` to the end of the key space.
    pub fn add_interval(&mut self, set: &'static str, first: Key, behind: Option<Key>) {
        self.operations.push(Operation::Interval { add: true, set, first, behind });
    }

    /// Deletes what [`add`](Self::add) or [`add_entry`](Self::add_entry) added.
    pub fn delete(&mut self, set: &'static str, key: Key) {
        self.element(false, set, key, None, None);
    }

    /// Deletes what [`add_range`](Self::add_range) added.
    pub fn delete_range(&mut self, set: &'static str, first: Key, last: Key) {
        self.element(false, set, first, Some(last), None);
    }

    /// Deletes what [`add_interval`](Self::add_interval) added.
    pub fn delete_interval(&mut self, set: &'static str, first: Key, behind: Option<Key>) {
        self.operations.push(Operation::Interval { add: false, set, first, behind });
    }

    /// Deletes the table with everything in it.
    pub fn delete_table(&mut self) {
        self.operations.push(Operation::DeleteTable);
    }

    fn element(
        &mut self,
        add: bool,
        set: &'static str,
        key: Key,
        last: Option<Key>,
        value: Option<Key>,
    ) {
        let element = Element { key, last, value, ends_interval: false };
        self.operations.push(Operation::Element { add, set, element });
    }
}

/// One operation of a batch that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its number in the batch; `None` if the batch as a whole was refused.
    pub operation: Option<usize>,
    /// The reason. `EXIST`: the key has another value. `NOENT`: no such element, set or table.
    pub errno: Errno,
    doing: String,
    detail: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, std::io::Error::from(self.errno))?;
        match &self.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

/// A connection to the firewall of the network namespace it was opened in.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
}

impl Nft {
    /// Opens a connection in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// What socket(2) reports; `EPROTONOSUPPORT` without nfnetlink in the kernel.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::netfilter()? })
    }

    /// Applies `batch`, all of it or nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with every operation the kernel objects to.
    pub fn commit(&mut self, batch: &Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let begin = self.socket.next_sequence();
        let mut writer = Writer::default();
        writer.message(BATCH_BEGIN, 0, begin, |w| header(w, 0, SUBSYSTEM));
        let mut last = begin;
        for (number, operation) in batch.operations.iter().enumerate() {
            // The acknowledgement of the last command is sent after the commit.
            let ack = if number + 1 == batch.len() { ACK } else { 0 };
            last = self.socket.next_sequence();
            write(&mut writer, batch.table, operation, last, ack);
        }
        let end = self.socket.next_sequence();
        writer.message(BATCH_END, 0, end, |w| header(w, 0, SUBSYSTEM));
        let bytes = writer.finish().ok_or(netlink::Error::TooLarge { bytes: 1 << 16 })?;

        let answers = self.socket.transact(bytes)?;
        let acknowledged = answers.iter().any(|a| a.sequence == last && a.errno == 0);
        let mut refusals = Vec::new();
        for answer in answers.into_iter().filter(|a| a.errno != 0) {
            let operation = (answer.sequence.wrapping_sub(begin) as usize)
                .checked_sub(1)
                .filter(|number| *number < batch.len());
            refusals.push(Refusal {
                operation,
                errno: Errno::from_raw_os_error(answer.errno),
                doing: operation.map_or_else(
                    || "commit a batch".to_owned(),
                    |number| batch.operations[number].to_string(),
                ),
                detail: answer.detail,
            });
        }
        match (refusals.is_empty(), acknowledged) {
            (true, true) => Ok(()),
            (true, false) => Err(netlink::Error::os("commit a batch", Errno::PROTO, None).into()),
            (false, _) => Err(Error::Refused(refusals)),
        }
    }

    /// Applies `batch` without the deletions of what does not exist; for cleaning up, where a part
    /// may be gone already.
    ///
    /// # Errors
    ///
    /// Any other refusal.
    pub fn commit_lenient(&mut self, batch: &Batch) -> Result<(), Error> {
        let mut batch = batch.clone();
        loop {
            let refusals = match self.commit(&batch) {
                Err(Error::Refused(refusals)) => refusals,
                other => return other,
            };
            let missing: Vec<_> = refusals
                .iter()
                .filter(|r| r.errno == Errno::NOENT)
                .filter_map(|r| r.operation)
                .collect();
            if missing.len() < refusals.len() {
                return Err(Error::Refused(refusals));
            }
            // Each round leaves out at least one operation, so the loop ends.
            let mut number = 0;
            batch.operations.retain(|_| {
                number += 1;
                !missing.contains(&(number - 1))
            });
        }
    }

    /// The comment of table `inet <table>`: `None` if there is no such table, empty if it has no
    /// comment.
    ///
    /// # Errors
    ///
    /// The kernel refused for another reason, such as `EPERM`.
    pub fn table_comment(&mut self, table: &str) -> Result<Option<String>, Error> {
        let sequence = self.socket.next_sequence();
        let mut writer = Writer::default();
        let kind = SUBSYSTEM << 8 | GET_TABLE;
        writer.message(kind, ACK, sequence, |w| {
            header(w, FAMILY_INET, 0);
            w.string(TABLE_NAME, table);
        });
        let bytes = writer.finish().ok_or(netlink::Error::TooLarge { bytes: 1 << 16 })?;
        let mut comment = None;
        let doing = format!("look for firewall table {table}");
        let result = self.socket.dump(sequence, bytes, &doing, |message| {
            let data = message.payload.get(4..).and_then(|rest| find(rest, TABLE_USERDATA));
            comment = Some(data.map(user_comment).unwrap_or_default());
        });
        match result {
            Ok(_) => Ok(comment),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Every element of a set or map.
    ///
    /// # Errors
    ///
    /// There is no such set, or it changed during every attempt.
    pub fn elements(&mut self, table: &str, set: &str) -> Result<Vec<Element>, Error> {
        let doing = format!("list the elements of {set}");
        for _ in 0..DUMP_TRIES {
            let sequence = self.socket.next_sequence();
            let mut writer = Writer::default();
            let kind = SUBSYSTEM << 8 | GET_ELEMENT;
            writer.message(kind, DUMP, sequence, |w| {
                header(w, FAMILY_INET, 0);
                w.string(LIST_TABLE, table);
                w.string(LIST_SET, set);
            });
            let bytes = writer.finish().ok_or(netlink::Error::TooLarge { bytes: 1 << 16 })?;
            let mut found = Vec::new();
            let consistent = self.socket.dump(sequence, bytes, &doing, |message| {
                let list = message.payload.get(4..).and_then(|rest| find(rest, LIST_ELEMENTS));
                found.extend(attributes(list.unwrap_or_default()).filter_map(|(_, e)| parse(e)));
            })?;
            if consistent {
                return Ok(found);
            }
        }
        Err(netlink::Error::Unstable { doing }.into())
    }
}

/// `struct nfgenmsg`.
fn header(w: &mut Writer, family: u8, resource: u16) {
    w.raw(&[family, 0]);
    w.raw(&resource.to_be_bytes());
}

fn write(w: &mut Writer, table: &str, operation: &Operation, sequence: u32, ack: u16) {
    let (add, set) = match operation {
        Operation::Element { add, set, .. } | Operation::Interval { add, set, .. } => (*add, *set),
        Operation::DeleteTable => {
            return w.message(SUBSYSTEM << 8 | DELETE_TABLE, ack, sequence, |w| {
                header(w, FAMILY_INET, 0);
                w.string(TABLE_NAME, table);
            });
        }
    };
    let (kind, flags) = if add { (NEW_ELEMENT, CREATE) } else { (DELETE_ELEMENT, 0) };
    w.message(SUBSYSTEM << 8 | kind, flags | ack, sequence, |w| {
        header(w, FAMILY_INET, 0);
        w.string(LIST_TABLE, table);
        w.string(LIST_SET, set);
        w.nest(LIST_ELEMENTS, |w| match operation {
            Operation::Element { element, .. } => write_element(w, element),
            Operation::Interval { first, behind, .. } => {
                let bound = |key: &Key, ends_interval| Element {
                    key: key.clone(),
                    last: None,
                    value: None,
                    ends_interval,
                };
                write_element(w, &bound(first, false));
                if let Some(behind) = behind {
                    write_element(w, &bound(behind, true));
                }
            }
            Operation::DeleteTable => {}
        });
    });
}

fn write_element(w: &mut Writer, element: &Element) {
    w.nest(LIST_ELEMENT, |w| {
        w.nest(ELEMENT_KEY, |w| w.attribute(DATA_VALUE, element.key.as_bytes()));
        if let Some(last) = &element.last {
            w.nest(ELEMENT_KEY_END, |w| w.attribute(DATA_VALUE, last.as_bytes()));
        }
        if let Some(value) = &element.value {
            w.nest(ELEMENT_DATA, |w| w.attribute(DATA_VALUE, value.as_bytes()));
        }
        if element.ends_interval {
            w.attribute(ELEMENT_FLAGS, &FLAG_INTERVAL_END.to_be_bytes());
        }
    });
}

fn parse(element: &[u8]) -> Option<Element> {
    let field =
        |kind| find(element, kind).and_then(|data| find(data, DATA_VALUE)).map(|v| Key(v.to_vec()));
    let flags = find(element, ELEMENT_FLAGS).and_then(|value| u32_at(value, 0));
    Some(Element {
        key: field(ELEMENT_KEY)?,
        last: field(ELEMENT_KEY_END),
        value: field(ELEMENT_DATA),
        ends_interval: flags.is_some_and(|raw| u32::from_be(raw) & FLAG_INTERVAL_END != 0),
    })
}

/// The comment in what `nft` keeps with a table: records of type, length, value; type 0 is it.
fn user_comment(data: &[u8]) -> String {
    let mut rest = data;
    while let [kind, length, tail @ ..] = rest {
        let Some(value) = tail.get(..usize::from(*length)) else { break };
        if *kind == 0 {
            return text(value);
        }
        rest = &tail[value.len()..];
    }
    String::new()
}
