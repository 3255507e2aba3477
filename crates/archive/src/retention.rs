//! What is given up when nobody wants to go back so far.

use crate::manifest::{Line, Manifest, Segment};
use holdfast_units::HybridTime;

/// What is kept. With both, what either keeps; with neither, everything. The newest base image and
/// all behind it is always kept.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Keep {
    /// Every moment that is so many milliseconds old, or younger.
    pub age: Option<u64>,
    /// So many of the newest base images, and the moments from them on.
    pub bases: Option<usize>,
}

impl Manifest {
    /// Leaves out what need not be kept; the names of the objects of the journal that are not
    /// named any more. Those of base images are found by what remains.
    pub(crate) fn expire(&mut self, archive: &str, keep: Keep, now: HybridTime) -> Vec<String> {
        let bases: Vec<(u32, u64, u64)> = self
            .lines
            .iter()
            .flat_map(|line| line.bases.iter().map(|base| (line.number, base.from, base.time)))
            .collect();
        let by_age = keep.age.map(|age| {
            let cut_off = HybridTime::from_unix_millis(now.unix_millis().saturating_sub(age));
            // The newest one from which that moment can be reached.
            bases.iter().rposition(|(_, _, time)| *time <= cut_off.0).unwrap_or(0)
        });
        let by_count = keep.bases.map(|count| bases.len().saturating_sub(count.max(1)));
        let Some(first) = by_age.into_iter().chain(by_count).min() else { return Vec::new() };
        let Some((line, from, _)) = bases.get(first).copied() else { return Vec::new() };
        let mut names = Vec::new();
        self.lines.retain(|old| {
            if old.number < line {
                names.extend(old.object_names(archive));
            }
            old.number >= line
        });
        if let Some(oldest) = self.lines.first_mut().filter(|oldest| oldest.number == line) {
            oldest.expire(archive, from, &mut names);
        }
        names
    }
}

impl Line {
    /// Leaves out the base images before this one, and what only they needed.
    fn expire(&mut self, archive: &str, first: u64, names: &mut Vec<String>) {
        self.bases.retain(|base| base.from >= first);
        let pending = self.pending.iter().map(|pending| pending.from);
        let needed = self.bases.iter().map(|base| base.from).chain(pending).min().unwrap_or(first);
        // The last one with records says what must come next, whoever appends it.
        let said = |rest: &[Segment]| rest.iter().any(|segment| segment.frames() > 0);
        while let [first, rest @ ..] = &self.segments[..]
            && first.end().0 <= needed
            && said(rest)
        {
            let segment = self.segments.remove(0);
            names.extend(
                segment.objects().map(|(at, o)| segment.object_name(archive, self.number, at, o)),
            );
        }
        let known = self.sizes.iter().rposition(|size| size.position <= needed).unwrap_or(0);
        self.sizes.drain(..known);
    }

    /// The names of all objects of its segments.
    pub(crate) fn object_names(&self, archive: &str) -> Vec<String> {
        let of = |segment: &Segment| {
            segment
                .objects()
                .map(|(from, object)| segment.object_name(archive, self.number, from, object))
                .collect::<Vec<_>>()
        };
        self.segments.iter().flat_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Keep;
    use crate::manifest::{Base, Line, Manifest};
    use holdfast_units::{HybridTime, ResourceId};

    fn manifest() -> Manifest {
        let at = |ms| HybridTime::from_unix_millis(ms).0;
        let base =
            |ms| Base { from: ms, ready: ms, time: at(ms), bytes: 0, stored: 0, parts: Vec::new() };
        let line = |number, times: &[u64]| Line {
            number,
            complete: 0,
            sizes: Vec::new(),
            segments: Vec::new(),
            bases: times.iter().map(|ms| base(*ms)).collect(),
            pending: None,
        };
        let lines = vec![line(1, &[100, 200]), line(3, &[300]), line(4, &[400, 500]), line(5, &[])];
        let mut manifest = Manifest::new(ResourceId([1; 16]));
        manifest.lines = lines;
        manifest
    }

    fn kept(keep: Keep) -> Vec<u64> {
        let mut manifest = manifest();
        manifest.expire("r", keep, HybridTime::from_unix_millis(1000));
        assert_eq!(manifest.lines.last().map(|line| line.number), Some(5), "the newest stays");
        manifest.lines.iter().flat_map(|line| line.bases.iter().map(|base| base.from)).collect()
    }

    #[test]
    fn the_oldest_moment_that_is_wanted_can_be_reached() {
        let age = |age| Keep { age: Some(age), bases: None };
        assert_eq!(kept(Keep::default()), [100, 200, 300, 400, 500]);
        assert_eq!(kept(age(950)), [100, 200, 300, 400, 500], "nothing is so old");
        assert_eq!(kept(age(800)), [200, 300, 400, 500]);
        assert_eq!(kept(age(750)), [200, 300, 400, 500]);
        assert_eq!(kept(age(700)), [300, 400, 500]);
        assert_eq!(kept(age(501)), [400, 500]);
        assert_eq!(kept(age(0)), [500]);
        let bases = |bases| Keep { age: None, bases: Some(bases) };
        assert_eq!(kept(bases(0)), [500], "the newest one is always kept");
        assert_eq!(kept(bases(3)), [300, 400, 500]);
        assert_eq!(kept(bases(99)), [100, 200, 300, 400, 500]);
        assert_eq!(kept(Keep { age: Some(501), bases: Some(1) }), [400, 500]);
        assert_eq!(kept(Keep { age: Some(0), bases: Some(3) }), [300, 400, 500]);
    }
}
