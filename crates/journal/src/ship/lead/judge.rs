//! Judging a follower by what it says of itself, and beginning to fill it.

use super::super::message::{
    Answer, Await, FEATURE_HEAL, FEATURE_LOST, FEATURE_LZ4, FEATURE_OFFER, FEATURE_PACKED, Hello,
    RefuseCode, Report, VERSION, Verdict, Welcome,
};
use super::served::{Bundle, Offers};
use super::types::{LeadError, Notes, Refusal, Source};
use super::{Leader, failed, gone, may_unpack, refuse, tail};
use crate::chain::{Relation, begins_history, compare, share_nothing};
use crate::ranges::RangeSet;
use holdfast_format::journal::{FollowState, SegmentLink};
use holdfast_units::{ByteRange, HybridTime, LogPosition, NodeId};

impl Leader {
    pub(super) fn hello(
        &mut self,
        now: HybridTime,
        (node, conn): (NodeId, u64),
        hello: &Hello,
        source: &mut impl Source,
        notes: &mut impl Notes,
    ) -> Result<Answer, Refusal> {
        if hello.version_min > VERSION || hello.version_max < VERSION {
            return Err(refuse(RefuseCode::Version, "the versions of the log protocol differ"));
        }
        if hello.resource != self.resource || hello.from != node {
            return Err(refuse(RefuseCode::Resource, "this connection is for another resource"));
        }
        let size = source.size();
        // One that has grown first has nothing behind our end.
        if hello.size < size {
            let text = "the resource has grown, and that node's part of it has not yet";
            return Err(refuse(RefuseCode::Member, text));
        }
        if !self.served.contains_key(&node) {
            return Err(refuse(RefuseCode::Member, "that node does not follow by the log"));
        }
        // Nothing is begun for who cannot read it.
        may_unpack(hello.features, || source.segments())?;
        let verdict = self.judge(node, &hello.report, source, notes).map_err(failed)?;
        // Judging may have begun a segment.
        may_unpack(hello.features, || source.segments())?;
        let features = hello.features
            & (FEATURE_LZ4 | FEATURE_OFFER | FEATURE_PACKED | FEATURE_HEAL | FEATURE_LOST);
        let served = self.served.get_mut(&node).ok_or_else(gone)?;
        served.bundle = Some(Bundle { number: hello.bundle, reports: conn });
        served.features = features;
        served.again = false;
        served.ships = matches!(verdict, Verdict::Ship | Verdict::Fill { .. } | Verdict::FillOn);
        served.to_fill = matches!(verdict, Verdict::Fill { .. });
        served.apart = matches!(verdict, Verdict::Apart { .. }).then_some(verdict);
        served.handed.clear();
        served.cursor = 0;
        served.fill_to = None;
        // What has changed is different; of everything, much may be equal.
        let much = served.missing.bytes() >= size / 2;
        served.offers = Offers::begin(features & FEATURE_OFFER != 0 && much);
        let report = &hello.report;
        served.last = Some(Await {
            state: report.state,
            fill: report.fill,
            fetched: report.fetched,
            replayed: report.replayed,
            fetch_paused: false,
            replay_paused: false,
            known: LogPosition::START,
            segment: first_wanted(&verdict, report),
            wait_ms: 0,
            copied: Vec::new(),
        });
        let head = self.head(now, node, source);
        Ok(Answer::Welcome(Welcome { version: VERSION, features, verdict, head }))
    }

    fn judge(
        &mut self,
        node: NodeId,
        report: &Report,
        source: &mut impl Source,
        notes: &mut impl Notes,
    ) -> Result<Verdict, LeadError> {
        let Some(served) = self.served.get(&node) else { return Ok(Verdict::Drain) };
        let ours = served.history(source);
        let known_here = served.all_links(source);
        let relation = compare(&ours, &report.links);
        let ours_or_less = matches!(relation, Relation::Ahead | Relation::Equal);
        let tail = tail(source).max(ours.first().map_or(LogPosition::START, |link| link.base));
        let kept = ours_or_less && report.fetched >= tail;
        // The note has all that was cut since: what is missing is known.
        let noted = served.noted && !served.links.is_empty();
        let known = noted && ours_or_less && report.fetched >= served.needs;
        match report.state {
            FollowState::Nothing | FollowState::Led => self.begin_fill(node, None, source, notes),
            FollowState::Filling if served.noted && served.fill == report.fill => {
                // What lies before the beginning of another history is of no use, nor is what
                // is noted of it.
                let from = served.from;
                let anew = |first: &SegmentLink| from <= first.base && begins_history(first);
                let empty = report.links.is_empty();
                let fresh = empty && !ours.first().is_some_and(anew);
                if kept && !empty || fresh && from >= tail {
                    let at = if fresh { from } else { report.fetched };
                    self.resumes(node, at, report, source, notes)?;
                    Ok(Verdict::FillOn)
                } else if fresh && noted {
                    self.begin_fill(node, Some(from), source, notes)
                } else if known && report.fetched >= from {
                    self.fill_what_is_missing(node, report, source, notes)
                } else {
                    self.begin_fill(node, None, source, notes)
                }
            }
            FollowState::Filling => self.begin_fill(node, None, source, notes),
            // What it follows was replicated to this node, or from it, by another way.
            FollowState::Consistent if self.is_earlier(node, &relation, report) => {
                self.begin_fill(node, None, source, notes)
            }
            FollowState::Consistent => match relation {
                Relation::Apart { common, ours, theirs, ours_since, theirs_since } => {
                    Ok(Verdict::Apart {
                        common,
                        follower: theirs,
                        leader: ours,
                        follower_since: theirs_since.unwrap_or_default(),
                        leader_since: ours_since.unwrap_or_default(),
                    })
                }
                Relation::Behind => Ok(Verdict::Apart {
                    common: Some(source.durable()),
                    follower: report.fetched.since(source.durable()),
                    leader: 0,
                    follower_since: HybridTime::default(),
                    leader_since: HybridTime::default(),
                }),
                // What it has is whole: with the journal from there on nothing is missing.
                Relation::Ahead | Relation::Equal if kept => {
                    self.resumes(node, report.fetched, report, source, notes)?;
                    Ok(Verdict::Ship)
                }
                Relation::Ahead | Relation::Equal if known => {
                    self.fill_what_is_missing(node, report, source, notes)
                }
                Relation::Unknown
                    if wrote_alone(node, &report.links, &known_here)
                        || share_nothing(&ours, &report.links) && self.is_foreign(report) =>
                {
                    Ok(Verdict::Apart {
                        common: None,
                        follower: report.links.iter().map(|link| link.len).sum(),
                        leader: ours.iter().map(|link| link.len).sum(),
                        follower_since: HybridTime::default(),
                        leader_since: HybridTime::default(),
                    })
                }
                Relation::Ahead | Relation::Equal | Relation::Unknown => {
                    self.begin_fill(node, None, source, notes)
                }
            },
        }
    }

    /// Whether the follower has an earlier state of the data here that came to it by a journal that
    /// this one does not continue.
    fn is_earlier(&self, node: NodeId, relation: &Relation, report: &Report) -> bool {
        let other = matches!(relation, Relation::Apart { .. } | Relation::Unknown);
        let copied = report.links.iter().rfind(|link| link.len > 0).or(report.links.first());
        other
            && copied.is_some_and(|link| link.origin != node)
            && self.lineage.contains(&report.generation)
    }

    /// Whether the follower has data of a generation that is not known here: nobody knows what they
    /// are besides.
    fn is_foreign(&self, report: &Report) -> bool {
        let known = self.lineage.contains(&report.generation);
        !self.lineage.is_empty() && !report.generation.is_none() && !known
    }

    fn fill_what_is_missing(
        &mut self,
        node: NodeId,
        report: &Report,
        source: &mut impl Source,
        notes: &mut impl Notes,
    ) -> Result<Verdict, LeadError> {
        if report.replayed < report.fetched {
            return Ok(Verdict::Drain);
        }
        self.begin_fill(node, Some(report.fetched), source, notes)
    }

    /// It goes on from `at`; the journal is kept from there.
    fn resumes(
        &mut self,
        node: NodeId,
        at: LogPosition,
        report: &Report,
        source: &mut impl Source,
        notes: &mut impl Notes,
    ) -> Result<(), LeadError> {
        let resource = self.resource;
        let Some(served) = self.served.get_mut(&node) else { return Ok(()) };
        let whole = report.state == FollowState::Consistent;
        if whole {
            (served.missing, served.unsure) = (RangeSet::new(), RangeSet::new());
        }
        if !served.noted || !served.links.is_empty() || served.stored_missing || served.needs > at {
            // From now on this node knows what the follower has.
            served.noted = true;
            served.links.clear();
            served.needs = at;
            served.store(resource, node, notes)?;
        }
        let known = source.peer(node);
        if known.fetched > at || known.switches.cut {
            source.peer_restarts(node, at)?;
        }
        source.peer_reached(node, at, report.replayed.min(at));
        Ok(())
    }

    /// Begins to fill a disk: with everything, or, when it has all before `has`, with what is
    /// noted and what the journal has from there on.
    fn begin_fill(
        &mut self,
        node: NodeId,
        has: Option<LogPosition>,
        source: &mut impl Source,
        notes: &mut impl Notes,
    ) -> Result<Verdict, LeadError> {
        let (segment, from) = source.begin_segment()?;
        let kept = has.map(|has| has.max(tail(source)));
        let changed = match kept {
            Some(kept) => source.changed_between(kept, from)?,
            None => None,
        };
        // Looked at behind the flush: nothing of before lies behind it.
        let (resource, size) = (self.resource, source.size());
        self.next_fill = self.next_fill.wrapping_add(1).max(1);
        let fill = self.next_fill;
        let Some(served) = self.served.get_mut(&node) else { return Ok(Verdict::Drain) };
        match changed {
            Some(changed) => {
                served.missing.extend(&changed);
                served.keep_links(&source.segments(), from);
            }
            None => {
                served.missing = RangeSet::new();
                served.missing.insert(ByteRange::new(0, size));
                // Whoever has anything lacks nothing besides.
                served.links.clear();
                served.needs = from;
            }
        }
        served.missing.extend(&std::mem::take(&mut served.unsure));
        (served.fill, served.from, served.noted) = (fill, from, true);
        served.store(resource, node, notes)?;
        source.peer_restarts(node, from)?;
        Ok(Verdict::Fill { fill, segment, from })
    }
}

/// Whether a node wrote segments of its own that the other one never had.
fn wrote_alone(node: NodeId, theirs: &[SegmentLink], ours: &[SegmentLink]) -> bool {
    let known = |link: &SegmentLink| {
        ours.iter()
            .any(|our| our.number == link.number && our.epoch == link.epoch && our.len >= link.len)
    };
    theirs.iter().any(|link| link.origin == node && link.len > 0 && !known(link))
}

fn first_wanted(verdict: &Verdict, report: &Report) -> u64 {
    match verdict {
        Verdict::Fill { segment, .. } => *segment,
        _ => report.links.last().map_or(0, |link| link.number),
    }
}
