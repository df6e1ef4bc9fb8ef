//! Finding directories by name: here, over links, and as the layers below have them.

use std::io::BufRead;
use std::rc::Rc;

use gantry_archive::name::join;
use gantry_archive::{ArchiveError, Result, Time};
use rustix::io::Errno;

use crate::attributes::Attributes;
use crate::convert::{Converter, looking};
use crate::tree::{Content, Directory, Id, Kind, TOP};

/// Implied directories noted for one archive, and bytes of their names; who needs more waits for the
/// layers below.
const MOST_IMPLIED: usize = 1 << 16;
const MOST_IMPLIED_BYTES: usize = 8 << 20;
/// Links expanded on one name. Source: Linux, `MAXSYMLINKS`.
const LINKS: usize = 40;

/// What is known of the layers below at some directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// Nothing of them shows.
    Nothing,
    /// They are not there yet.
    Unknown,
    /// They are in view.
    There,
}

/// A directory of the tree.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) dir: Id,
    /// Its name without any link on the way.
    pub(crate) real: Vec<u8>,
    pub(crate) sight: Sight,
}

enum Step {
    Into(Place),
    Link(Vec<u8>),
}

impl<R: BufRead> Converter<'_, R> {
    fn sight(&self) -> Sight {
        match (&self.below, self.standalone) {
            (Some(_), _) => Sight::There,
            (None, true) => Sight::Unknown,
            (None, false) => Sight::Nothing,
        }
    }

    /// The directory `path` (clean), made with its parents if it is missing. `of` is what it is
    /// needed for; new directories get `time`.
    pub(crate) fn place(&mut self, path: &[u8], of: &[u8], time: Time) -> Result<Rc<Place>> {
        if let Some(last) = self.last.as_ref().filter(|last| last.real == path) {
            return Ok(last.clone());
        }
        let place = match self.plain(path) {
            Some(place) => place,
            None => self.walk(path, of, time)?,
        };
        let place = Rc::new(place);
        // Of a name that leads over a link it is not known how long that is so.
        self.last = (place.real == path).then(|| place.clone());
        Ok(place)
    }

    /// The directory `path` if all on the way to it are directories here.
    pub(crate) fn plain(&self, path: &[u8]) -> Option<Place> {
        let mut place = Place { dir: TOP, real: path.to_vec(), sight: self.sight() };
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            place.dir = self.tree.get(place.dir, name)?;
            if self.tree.directory(place.dir)?.is_opaque {
                place.sight = Sight::Nothing;
            }
        }
        Some(place)
    }

    fn walk(&mut self, path: &[u8], of: &[u8], time: Time) -> Result<Place> {
        let mut levels = vec![Place { dir: TOP, real: Vec::new(), sight: self.sight() }];
        let mut names: Vec<Vec<u8>> = components(path);
        let mut links = 0;
        while let Some(name) = names.pop() {
            if name == b".." {
                if levels.len() > 1 {
                    levels.pop();
                }
                continue;
            }
            let Some(here) = levels.last() else { break };
            match self.step(&here.clone(), &name, of, time)? {
                Step::Into(place) => levels.push(place),
                Step::Link(target) => {
                    links += 1;
                    if links > LINKS {
                        return Err(ArchiveError::refused(of, "too many links on the way"));
                    }
                    if target.starts_with(b"/") {
                        levels.truncate(1);
                    }
                    names.extend(components(&target));
                    if names.len() + levels.len() > 4096 {
                        return Err(ArchiveError::refused(of, "it is too deep"));
                    }
                }
            }
        }
        levels.pop().ok_or_else(|| ArchiveError::io("find", of, Errno::NOENT))
    }

    /// One component, which exists here, exists below, or is made.
    fn step(&mut self, here: &Place, name: &[u8], of: &[u8], time: Time) -> Result<Step> {
        let Some(id) = self.tree.get(here.dir, name) else {
            return self.step_below(here, name, of, time);
        };
        let node = self.tree.node(id);
        match &node.content {
            Content::Directory(directory) => {
                let sight = if directory.is_opaque { Sight::Nothing } else { here.sight };
                Ok(Step::Into(Place { dir: id, real: join(&here.real, name), sight }))
            }
            Content::Symlink(target) => Ok(Step::Link(target.to_vec())),
            _ if node.is_whiteout() => {
                self.tree.unlink(here.dir, name);
                let attributes = Attributes::plain(0o755, time);
                let place = self.make(here, name, attributes, Sight::Nothing)?;
                self.tree.set_opaque(place.dir);
                Ok(Step::Into(place))
            }
            _ => Err(ArchiveError::refused(of, "its parent is not a directory")),
        }
    }

    /// One component that does not exist here.
    fn step_below(&mut self, here: &Place, name: &[u8], of: &[u8], time: Time) -> Result<Step> {
        let mut attributes = Attributes::plain(0o755, time);
        let mut sight = here.sight;
        match (here.sight, &self.below) {
            (Sight::Unknown, _) => self.note_implied(join(&here.real, name), of)?,
            (Sight::There, Some(below)) => {
                let real = join(&here.real, name);
                match below.find(&real).map_err(looking(of))? {
                    Some(found) if found.kind == Kind::Symlink => {
                        return found.link().map(Step::Link).map_err(looking(of));
                    }
                    Some(found) if found.kind == Kind::Directory => {
                        attributes = found.attributes(&real)?;
                    }
                    Some(_) => {
                        return Err(ArchiveError::refused(of, "its parent is not a directory"));
                    }
                    None => sight = Sight::Nothing,
                }
            }
            _ => {}
        }
        self.make(here, name, attributes, sight).map(Step::Into)
    }

    fn make(
        &mut self,
        here: &Place,
        name: &[u8],
        attributes: Attributes,
        sight: Sight,
    ) -> Result<Place> {
        let dir = self.tree.add(attributes, Content::Directory(Directory::default()))?;
        self.tree.link(here.dir, name, dir)?;
        Ok(Place { dir, real: join(&here.real, name), sight })
    }

    fn note_implied(&mut self, real: Vec<u8>, of: &[u8]) -> Result<()> {
        self.implied_bytes += real.len();
        if self.implied.len() >= MOST_IMPLIED || self.implied_bytes > MOST_IMPLIED_BYTES {
            return Err(ArchiveError::needs_below(of));
        }
        self.implied.insert(real);
        Ok(())
    }

    /// What the archive says of an implied directory now might be about something else than what it
    /// was used for before, if a link of that name lies below.
    pub(crate) fn refuse_change(&self, real: &[u8], of: &[u8]) -> Result<()> {
        match self.implied.contains(real) {
            true => Err(ArchiveError::needs_below(of)),
            false => Ok(()),
        }
    }

    /// The same for `real` and everything in it.
    pub(crate) fn refuse_removal(&self, real: &[u8], of: &[u8]) -> Result<()> {
        self.refuse_change(real, of)?;
        let inside = join(real, b"");
        match self.implied.range(inside.clone()..).next() {
            Some(name) if name.starts_with(&inside) => Err(ArchiveError::needs_below(of)),
            _ => Ok(()),
        }
    }
}

/// Components in reverse: the next one is the last.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    parts.rev().map(<[u8]>::to_vec).collect()
}
