//! What is written down about a mirror, so that another process knows which server lacks what.
//!
//! Two headers, a map of hot extents, a bitmap for each leg. The order is: that an extent is hot is
//! durable before the first write to it is sent; that a leg is behind is durable before a write
//! that it missed is completed. Bits of the bitmaps may be written later: after a crash, all of a
//! hot extent counts as missing.

use super::bitmap::{Bitmap, PIECE_BYTES, pieces_of};
use crate::client::remembered::Remembered;
use crate::client::status::LegState;
use holdfast_units::ByteRange;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::Notify;

const MAGIC: &[u8; 8] = b"HFMIRROR";
/// The one before had nothing behind the legs, which is read as nothing.
const VERSIONS: [u32; 2] = [2, 1];
/// The name of the file, in a directory of its own.
const FILE: &str = "mirror.state";
const PAGE: u64 = 4096;
/// The two headers.
const HEADERS: u64 = 2 * PAGE;
/// An extent is hot or not as a whole.
pub(super) const EXTENT: u64 = 4 << 20;

type Page = Vec<u8>;

/// What was written down.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Noted {
    pub(super) legs: Vec<LegState>,
    pub(super) missing: Vec<Bitmap>,
    /// Extents that may differ between the legs; none after an end in good order.
    pub(super) hot: Vec<ByteRange>,
    /// What each leg held outside of those, if it was in sync.
    pub(super) remembered: Vec<Remembered>,
    /// Which legs were used without the others since.
    pub(super) used: Vec<bool>,
}

pub(super) struct Book {
    file: Arc<File>,
    size: u64,
    /// Where each leg is in the file: the order of the URIs may be another one each time.
    slots: Vec<usize>,
    /// By slot, as all in the state.
    uris: Vec<[u8; 32]>,
    state: RefCell<State>,
    written: Notify,
}

struct State {
    legs: Vec<LegState>,
    remembered: Vec<Remembered>,
    used: Vec<bool>,
    sequence: u64,
    /// Extents, and how many changes of each are under way or not flushed yet.
    hot: BTreeMap<u64, Hot>,
    /// What the file has, or will have, of each leg's bitmap.
    missing: Vec<Bitmap>,
    /// Pieces of the bitmaps to be written, before all else.
    pieces: BTreeSet<(usize, u64)>,
    /// Pages of the map of hot extents to be written.
    pages: BTreeSet<u64>,
    /// Grows with every change; and what the file has.
    version: u64,
    durable: u64,
    writing: bool,
    broken: bool,
}

#[derive(Clone, Copy, Default, Debug)]
struct Hot {
    under_way: u32,
    /// The round in which it was written last.
    round: u64,
}

/// What is to be written where, and the version of the state that the file has then.
struct Work {
    upto: u64,
    pieces: Vec<(u64, Page)>,
    pages: Vec<(u64, Page)>,
}

/// The file cannot be written: nothing that has to be in it can be promised any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Broken;

impl Book {
    /// Opens the book of a mirror; what it says, unless it is new.
    ///
    /// # Errors
    /// When it is about another mirror, damaged, in use, or cannot be read.
    pub(super) fn open(
        dir: &Path,
        size: u64,
        uris: &[String],
    ) -> Result<(Rc<Self>, Option<Noted>), String> {
        let path = dir.join(FILE);
        let fail = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        std::fs::create_dir_all(dir).map_err(|error| fail(&error))?;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|error| fail(&error))?;
        file.try_lock().map_err(|_| fail(&"another process uses it"))?;
        let mut uris: Vec<_> = uris.iter().map(|uri| name_of(uri)).collect();
        let mut slots: Vec<_> = (0..uris.len()).collect();
        let len = file.metadata().map_err(|error| fail(&error))?.len();
        let mut header = None;
        if len > 0 {
            header = newest_header(&file);
            let header = header.as_ref().ok_or_else(|| fail(&"it is damaged"))?;
            if header.size != size {
                let was = header.size;
                return Err(fail(&format!("the disks have {size} bytes now, and had {was}")));
            }
            let known = uris.iter().map(|uri| header.uris.iter().position(|known| known == uri));
            let known: Option<Vec<_>> = known.collect();
            slots = known
                .filter(|slots| slots.len() == header.uris.len())
                .ok_or_else(|| fail(&"it is about other servers"))?;
            uris.clone_from(&header.uris);
        }
        let mut state = State {
            legs: vec![LegState::Behind; uris.len()],
            remembered: vec![Remembered::default(); uris.len()],
            used: vec![false; uris.len()],
            sequence: 0,
            hot: BTreeMap::new(),
            missing: vec![Bitmap::default(); uris.len()],
            pieces: BTreeSet::new(),
            pages: BTreeSet::new(),
            version: 0,
            durable: 0,
            writing: false,
            broken: false,
        };
        let mut noted = None;
        if let Some(header) = header {
            state.legs.clone_from(&header.legs);
            state.sequence = header.sequence;
            let read = read_maps(&file, size, &mut state).map_err(|error| fail(&error))?;
            let hot = if header.clean { Vec::new() } else { read };
            state.remembered = header.remembered;
            state.used = header.used;
            noted = Some(Noted {
                legs: by_leg(&slots, &state.legs),
                missing: by_leg(&slots, &state.missing),
                hot,
                remembered: by_leg(&slots, &state.remembered),
                used: by_leg(&slots, &state.used),
            });
        }
        let (file, state) = (Arc::new(file), RefCell::new(state));
        let book = Self { file, size, slots, uris, state, written: Notify::new() };
        Ok((Rc::new(book), noted))
    }

    /// What a leg is worth now.
    pub(super) fn set_leg(&self, leg: usize, is: LegState) {
        let (mut state, slot) = (self.state.borrow_mut(), self.slots[leg]);
        if state.legs[slot] != is {
            state.legs[slot] = is;
            state.version += 1;
        }
    }

    /// What a leg holds: what is true, or in an extent that is hot.
    pub(super) fn remember(&self, leg: usize, remembered: Remembered) {
        let (mut state, slot) = (self.state.borrow_mut(), self.slots[leg]);
        if state.remembered[slot] != remembered {
            state.remembered[slot] = remembered;
            state.version += 1;
        }
    }

    /// A leg lacks these blocks, too.
    pub(super) fn add_missing(&self, leg: usize, missing: &Bitmap) {
        let (mut state, slot) = (self.state.borrow_mut(), self.slots[leg]);
        state.missing[slot].add(missing);
        let pieces: Vec<_> = missing.pieces().map(|piece| (slot, piece)).collect();
        if !pieces.is_empty() {
            state.pieces.extend(pieces);
            state.version += 1;
        }
    }

    /// A leg lacks nothing, and has flushed it.
    pub(super) fn clear_missing(&self, leg: usize) {
        let (mut state, slot) = (self.state.borrow_mut(), self.slots[leg]);
        let old = std::mem::take(&mut state.missing[slot]);
        state.pieces.extend(old.pieces().map(|piece| (slot, piece)));
        state.version += 1;
    }

    /// A change of a range begins; true when [`Book::commit`] must end first.
    pub(super) fn heat(&self, range: ByteRange) -> bool {
        let mut state = self.state.borrow_mut();
        let mut cold = false;
        for extent in extents(range) {
            let hot = state.hot.entry(extent).or_insert_with(|| {
                cold = true;
                Hot::default()
            });
            hot.under_way += 1;
        }
        if cold {
            let pages: Vec<_> = extents(range).map(|extent| extent / (PAGE * 8)).collect();
            state.pages.extend(pages);
            state.version += 1;
        }
        // One that was made hot by another change may not be durable yet either.
        state.durable < state.version
    }

    /// A change of a range is over, in round `round`.
    pub(super) fn end(&self, range: ByteRange, round: u64) {
        let mut state = self.state.borrow_mut();
        for extent in extents(range) {
            if let Some(hot) = state.hot.get_mut(&extent) {
                hot.under_way -= 1;
                hot.round = round;
            }
        }
    }

    /// Everything that ended in a round before `round` is flushed everywhere: those extents need
    /// not be hot any more.
    pub(super) fn cool(&self, round: u64) {
        let mut state = self.state.borrow_mut();
        let cold = |hot: &Hot| hot.under_way == 0 && hot.round < round;
        let pages: BTreeSet<_> = state
            .hot
            .extract_if(.., |_, hot| cold(hot))
            .map(|(extent, _)| extent / (PAGE * 8))
            .collect();
        if !pages.is_empty() {
            state.pages.extend(pages);
            state.version += 1;
        }
    }

    pub(super) fn is_hot(&self) -> bool {
        !self.state.borrow().hot.is_empty()
    }

    /// The first commit: from now on the legs may become different.
    ///
    /// # Errors
    /// [`Broken`].
    pub(super) async fn begin(&self) -> Result<(), Broken> {
        {
            let mut state = self.state.borrow_mut();
            state.version += 1;
            state.used.fill(false);
        }
        self.commit().await
    }

    /// Waits until all changes of the book up to now are durable. Who comes while it is written
    /// shares the next writing.
    ///
    /// # Errors
    /// [`Broken`] from the first error of the file on.
    pub(super) async fn commit(&self) -> Result<(), Broken> {
        self.commit_as(false).await
    }

    /// The last commit: all legs that are in sync are equal.
    ///
    /// # Errors
    /// [`Broken`].
    pub(super) async fn close(&self) -> Result<(), Broken> {
        self.state.borrow_mut().version += 1;
        self.commit_as(true).await
    }

    /// Nothing is written any more, and another process may have the book.
    pub(super) async fn release(&self) {
        self.state.borrow_mut().broken = true;
        while self.state.borrow().writing {
            self.written.notified().await;
        }
        // It is released with the file at the latest.
        let _ = self.file.unlock();
    }

    async fn commit_as(&self, clean: bool) -> Result<(), Broken> {
        let version = self.state.borrow().version;
        loop {
            let work = {
                let mut state = self.state.borrow_mut();
                if state.broken {
                    return Err(Broken);
                }
                if state.durable >= version {
                    return Ok(());
                }
                if state.writing { None } else { Some(self.gather(&mut state, clean)) }
            };
            let Some(Work { upto, pieces, pages }) = work else {
                self.written.notified().await;
                continue;
            };
            let file = Arc::clone(&self.file);
            let written = tokio::task::spawn_blocking(move || write(&file, &pieces, &pages)).await;
            let mut state = self.state.borrow_mut();
            state.writing = false;
            match written {
                Ok(Ok(())) => state.durable = upto,
                Ok(Err(_)) | Err(_) => state.broken = true,
            }
            drop(state);
            self.written.notify_waiters();
        }
    }

    /// What has to be written now: first the bitmaps, then the rest.
    fn gather(&self, state: &mut State, clean: bool) -> Work {
        state.writing = true;
        state.sequence += 1;
        let mut pieces = Vec::new();
        for (slot, piece) in std::mem::take(&mut state.pieces) {
            pieces.push((self.place(slot, piece), state.missing[slot].piece(piece)));
        }
        let mut pages: Vec<_> = std::mem::take(&mut state.pages)
            .into_iter()
            .map(|page| (HEADERS + page * PAGE, hot_page(page, &state.hot)))
            .collect();
        let header = Header {
            sequence: state.sequence,
            size: self.size,
            clean,
            legs: state.legs.clone(),
            uris: self.uris.clone(),
            used: state.used.clone(),
            remembered: state.remembered.clone(),
        };
        pages.push((header.place(), header.page()));
        Work { upto: state.version, pieces, pages }
    }

    fn place(&self, slot: usize, piece: u64) -> u64 {
        let maps = HEADERS + hot_pages(self.size) * PAGE;
        maps + (slot as u64 * pieces_of(self.size) + piece) * PIECE_BYTES
    }
}

struct Header {
    sequence: u64,
    size: u64,
    clean: bool,
    legs: Vec<LegState>,
    uris: Vec<[u8; 32]>,
    used: Vec<bool>,
    remembered: Vec<Remembered>,
}

const IN_SYNC: u8 = 1;
const USED: u8 = 2;

impl Header {
    const fn place(&self) -> u64 {
        self.sequence % 2 * PAGE
    }

    fn page(&self) -> Page {
        let mut page = MAGIC.to_vec();
        page.extend(VERSIONS[0].to_le_bytes());
        page.extend(self.sequence.to_le_bytes());
        page.extend(self.size.to_le_bytes());
        page.push(u8::from(self.clean));
        page.push(u8::try_from(self.uris.len()).unwrap_or(u8::MAX));
        for ((uri, leg), used) in self.uris.iter().zip(&self.legs).zip(&self.used) {
            let in_sync = if *leg == LegState::InSync { IN_SYNC } else { 0 };
            page.push(in_sync | if *used { USED } else { 0 });
            page.extend(uri);
        }
        self.remembered.iter().for_each(|remembered| page.extend(remembered.to_bytes()));
        page.resize(index(PAGE) - 32, 0);
        let checksum = Sha256::digest(&page);
        page.extend(checksum);
        page
    }
}

/// The newer one of those that are whole.
fn newest_header(file: &File) -> Option<Header> {
    let slots = [0, PAGE].map(|at| read_header(file, at));
    slots.into_iter().flatten().max_by_key(|header| header.sequence)
}

/// A header that is whole.
fn read_header(file: &File, at: u64) -> Option<Header> {
    let mut page = vec![0; index(PAGE)];
    file.read_exact_at(&mut page, at).ok()?;
    let (body, checksum) = page.split_at(index(PAGE) - 32);
    if checksum != Sha256::digest(body).as_slice() || !body.starts_with(MAGIC) {
        return None;
    }
    let u64_at = |at: usize| Some(u64::from_le_bytes(body.get(at..at + 8)?.try_into().ok()?));
    if !VERSIONS.iter().any(|known| body.get(8..12) == Some(known.to_le_bytes().as_slice())) {
        return None;
    }
    let (mut legs, mut uris, mut used) = (Vec::new(), Vec::new(), Vec::new());
    let (all, mut rest) = body.get(30..)?.split_at_checked(usize::from(body[29]) * 33)?;
    for leg in all.chunks_exact(33) {
        legs.push(if leg[0] & IN_SYNC != 0 { LegState::InSync } else { LegState::Behind });
        used.push(leg[0] & USED != 0);
        uris.push(leg[1..].try_into().ok()?);
    }
    let mut remembered = Vec::new();
    for _ in &legs {
        let (one, behind) = Remembered::from_bytes(rest)?;
        remembered.push(one);
        rest = behind;
    }
    let (sequence, size, clean) = (u64_at(12)?, u64_at(20)?, body[28] == 1);
    Some(Header { sequence, size, clean, legs, uris, used, remembered })
}

/// Reads the bitmaps into the state; the ranges that are hot.
fn read_maps(file: &File, size: u64, state: &mut State) -> io::Result<Vec<ByteRange>> {
    let mut page = vec![0; index(PAGE)];
    let mut hot = Vec::new();
    for number in 0..hot_pages(size) {
        if read_or_zero(file, &mut page, HEADERS + number * PAGE)? {
            for (at, byte) in (0..).zip(&page) {
                for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                    let offset = (number * PAGE * 8 + at * 8 + bit) * EXTENT;
                    if offset < size {
                        hot.push(ByteRange::new(offset, EXTENT.min(size - offset)));
                        // It stays hot until it is known to be equal.
                        state.hot.insert(offset / EXTENT, Hot::default());
                    }
                }
            }
        }
    }
    let maps = HEADERS + hot_pages(size) * PAGE;
    for (leg, missing) in (0..).zip(&mut state.missing) {
        for piece in 0..pieces_of(size) {
            let at = maps + (leg * pieces_of(size) + piece) * PIECE_BYTES;
            if read_or_zero(file, &mut page, at)? {
                missing.load(piece, &page, size);
            }
        }
    }
    Ok(hot)
}

/// Whether there is anything; a file that ends before has zeroes there.
fn read_or_zero(file: &File, page: &mut [u8], at: u64) -> io::Result<bool> {
    match file.read_exact_at(page, at) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
        Ok(()) => Ok(true),
    }
}

fn write(file: &File, pieces: &[(u64, Page)], pages: &[(u64, Page)]) -> io::Result<()> {
    if !pieces.is_empty() {
        for (at, piece) in pieces {
            file.write_all_at(piece, *at)?;
        }
        file.sync_data()?;
    }
    for (at, page) in pages {
        file.write_all_at(page, *at)?;
    }
    file.sync_data()
}

/// The book of another mirror to which one of these disks belongs, and in which a leg lacks something:
/// known by a URI, or by what the disks hold.
pub(super) fn find_lacking(
    own: &Path,
    size: u64,
    uris: &[String],
    disks: &[Remembered],
) -> Option<PathBuf> {
    let names: Vec<_> = uris.iter().map(|uri| name_of(uri)).collect();
    let beside = own.parent().unwrap_or(own);
    books(beside).filter(|path| !path.starts_with(own)).find(|path| {
        let header = File::open(path).ok().and_then(|file| newest_header(&file));
        header.is_some_and(|header| {
            let named = names.iter().any(|name| header.uris.contains(name));
            let same = |known: &Remembered| disks.iter().any(|disk| disk.looks_like(known));
            let lacks = !header.clean
                || header.used.contains(&true)
                || header.legs.contains(&LegState::Behind);
            header.size == size && lacks && (named || header.remembered.iter().any(same))
        })
    })
}

/// Notes in the books in `dir`, but for the one in `own`, that these exports are used without the
/// other legs.
///
/// # Errors
/// When one of these books is in use, or cannot be written.
pub(super) fn note_use(dir: &Path, own: Option<&Path>, uris: &[String]) -> Result<(), String> {
    let names: Vec<_> = uris.iter().map(|uri| name_of(uri)).collect();
    for path in books(dir).filter(|path| !own.is_some_and(|own| path.starts_with(own))) {
        let fail = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let file = File::options().read(true).write(true).open(&path);
        let file = file.map_err(|error| fail(&error))?;
        let is_ours = |header: &Header| names.iter().any(|name| header.uris.contains(name));
        if !newest_header(&file).is_some_and(|header| is_ours(&header)) {
            continue;
        }
        file.try_lock().map_err(|_| fail(&"the mirror that it is about is attached"))?;
        let Some(mut header) = newest_header(&file) else { continue };
        header.sequence += 1;
        for (used, uri) in header.used.iter_mut().zip(&header.uris) {
            *used |= names.contains(uri);
        }
        write(&file, &[], &[(header.place(), header.page())]).map_err(|error| fail(&error))?;
    }
    Ok(())
}

/// The books in the directories in `dir`.
fn books(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().join(FILE)).filter(|path| path.is_file())
}

fn name_of(uri: &str) -> [u8; 32] {
    Sha256::digest(uri).into()
}

fn by_leg<T: Clone>(slots: &[usize], all: &[T]) -> Vec<T> {
    slots.iter().map(|slot| all[*slot].clone()).collect()
}

fn extents(range: ByteRange) -> std::ops::Range<u64> {
    range.offset / EXTENT..range.end().div_ceil(EXTENT)
}

const fn hot_pages(size: u64) -> u64 {
    size.div_ceil(EXTENT).div_ceil(PAGE * 8)
}

fn hot_page(number: u64, hot: &BTreeMap<u64, Hot>) -> Page {
    let mut page = vec![0; index(PAGE)];
    let first = number * PAGE * 8;
    for extent in hot.range(first..first + PAGE * 8).map(|(extent, _)| extent - first) {
        page[index(extent / 8)] |= 1 << (extent % 8);
    }
    page
}

/// An offset within a page.
fn index(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}
