//! Lending what was fetched to another node that follows: pieces of the same journal, up to where it is
//! durable here.

use super::super::codec::{MAX_PAYLOAD, MAX_SEGMENTS};
use super::super::lead::{Refusal, fetch_piece, may_unpack};
use super::super::message::{
    Answer, FEATURE_LENT, FEATURE_LZ4, Head, Hello, RefuseCode, Request, VERSION, Verdict, Welcome,
};
use super::Follower;
use crate::chain::{Relation, compare};
use crate::driver::{Backing, Files};
use holdfast_format::journal::FollowState;
use holdfast_units::HybridTime;
use std::io;

fn refuse(code: RefuseCode, text: &str) -> Refusal {
    Refusal { code, text: text.to_owned() }
}

impl<O, F, D> Follower<O, F, D>
where
    O: FnMut() -> io::Result<F>,
    F: Files,
    D: Backing,
{
    /// The answer to what another node that follows asks. The first request of a connection must be
    /// a hello or a join; what was said in a hello is not remembered: a fetch names its segment,
    /// and the other side verifies what it gets.
    #[must_use]
    pub fn lend(&self, now: HybridTime, request: &Request) -> Answer {
        let answer = match request {
            Request::Hello(hello) => self.lend_hello(now, hello).map(Answer::Welcome),
            Request::Join(join) if join.resource == self.options.settings.resource => {
                Ok(Answer::Joined)
            }
            Request::Await(ask) => Ok(Answer::Head(self.lend_head(now, ask.segment))),
            Request::Fetch(fetch) => {
                let max = usize::try_from(fetch.len).unwrap_or(MAX_PAYLOAD).min(MAX_PAYLOAD);
                let bytes = self.log().ok().filter(|_| self.lends());
                let bytes = bytes.and_then(|log| log.fetch(fetch.segment, fetch.from, max).ok());
                let gone = || refuse(RefuseCode::Gone, "what was asked for is not here");
                bytes
                    .map(|bytes| Answer::Piece(fetch_piece(*fetch, FEATURE_LZ4, bytes)))
                    .ok_or_else(gone)
            }
            Request::Join(_) | Request::Copy { .. } | Request::Take { .. } | Request::Heal(_) => {
                Err(refuse(RefuseCode::NotLeading, "this node follows"))
            }
        };
        answer.unwrap_or_else(Answer::from)
    }

    /// Its journal is one that others may have: a whole part of the leader's.
    fn lends(&self) -> bool {
        self.state.state == FollowState::Consistent && self.state.limit.is_none()
    }

    fn lend_hello(&self, now: HybridTime, hello: &Hello) -> Result<Welcome, Refusal> {
        if hello.version_min > VERSION || hello.version_max < VERSION {
            return Err(refuse(RefuseCode::Version, "the versions of the log protocol differ"));
        }
        let same = hello.resource == self.options.settings.resource;
        let log = self.log().ok().filter(|_| self.lends() && same);
        let nothing = || refuse(RefuseCode::NotLeading, "this node has nothing to lend");
        let log = log.ok_or_else(nothing)?;
        let journal = log.journal();
        let report = &hello.report;
        let whole = report.state == FollowState::Consistent && !report.links.is_empty();
        let goes_on = compare(&journal.links(), &report.links) == Relation::Ahead;
        if !whole || !goes_on || report.fetched < journal.status().tail {
            return Err(nothing());
        }
        may_unpack(hello.features, || log.journal().durable_segments())?;
        let features = hello.features & FEATURE_LZ4 | FEATURE_LENT;
        let wanted = report.links.last().map_or(0, |link| link.number);
        let head = self.lend_head(now, wanted);
        Ok(Welcome { version: VERSION, features, verdict: Verdict::Ship, head })
    }

    fn lend_head(&self, now: HybridTime, wanted: u64) -> Head {
        let mut segments = match self.log() {
            Ok(log) if self.lends() => log.journal().durable_segments(),
            _ => Vec::new(),
        };
        segments.retain(|(header, _)| header.number >= wanted);
        segments.truncate(MAX_SEGMENTS);
        Head {
            durable: self.durable(),
            now,
            fetch_lag_ms: 0,
            replay_lag_ms: 0,
            again: !self.lends(),
            fill: 0,
            fill_left: 0,
            fill_to: None,
            segments,
        }
    }
}
