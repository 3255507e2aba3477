//! Asking the leader: who this node is, how it stands, what it wants.

use super::super::codec::{MAX_COPIED, MAX_LINKS};
use super::super::message::{
    Await, FEATURE_HEAL, FEATURE_LOST, FEATURE_LZ4, FEATURE_OFFER, FEATURE_PACKED, Hello, Report,
    Request, VERSION, Verdict,
};
use super::types::{ConnId, FollowError};
use super::{ASK_AGAIN_MS, Asked, Follower, REPORT_MS, WAIT_MS};
use crate::driver::{Backing, Files};
use holdfast_format::journal::FollowState;
use holdfast_units::GenerationId;
use std::io;

impl<O, F, D> Follower<O, F, D>
where
    O: FnMut() -> io::Result<F>,
    F: Files,
    D: Backing,
{
    /// The generation of the newest data in the journal; without a record there, that of the segment at
    /// whose beginning the disk was filled.
    fn generation(&self) -> GenerationId {
        let segments = self.log.as_ref().map(|log| log.journal().durable_segments());
        let segments = segments.unwrap_or_default();
        let newest = segments.iter().rfind(|(_, len)| *len > 0).or(segments.first());
        newest.map_or(GenerationId::NONE, |(header, _)| header.generation)
    }

    fn report(&self) -> Report {
        let links = self.log.as_ref().map(|log| log.journal().links()).unwrap_or_default();
        let first = links.len().saturating_sub(MAX_LINKS);
        Report {
            state: self.state.state,
            fill: self.state.fill,
            generation: self.generation(),
            fetched: self.durable(),
            replayed: self.state.replayed,
            links: links[first..].to_vec(),
        }
    }

    /// Asks for what can be had.
    pub(super) fn ask(&mut self, now_ms: u64) -> Result<(), FollowError> {
        let Some(first) = self.first else { return Ok(()) };
        self.greet_when_due(now_ms, first);
        if !self.follows() || self.must_greet {
            return Ok(());
        }
        self.report_when_due(now_ms, first);
        if self.state.fetch_paused || now_ms < self.fetch_from_ms {
            return Ok(());
        }
        self.take_what_is_different();
        let (pieces, window) = (self.options.piece, self.options.window);
        let most = self.options.requests;
        loop {
            let free = self.conns.iter().filter(|(id, conn)| **id != first && conn.ready);
            let free = free.min_by_key(|(_, conn)| conn.asked.len());
            let Some((conn, used)) = free.map(|(id, conn)| (*id, conn.asked.len())) else { break };
            if used >= most {
                break;
            }
            if self.copies() && !self.copies_given_out {
                let fill = self.state.fill;
                self.send(conn, Request::Copy { fill }, Asked::Copy(fill));
                // One connection in two keeps fetching meanwhile.
                if let Some(fetch) = self.fetcher.ask(pieces, window) {
                    let round = self.round;
                    self.send(conn, Request::Fetch(fetch), Asked::Fetch(fetch, round));
                }
                continue;
            }
            let Some(fetch) = self.fetcher.ask(pieces, window) else { break };
            let round = self.round;
            self.send(conn, Request::Fetch(fetch), Asked::Fetch(fetch, round));
        }
        Ok(())
    }

    /// Asks for parts that were offered, each on the connection on which it was given out.
    fn take_what_is_different(&mut self) {
        let fill = self.state.fill;
        for (conn, range) in std::mem::take(&mut self.takes) {
            let used = self.conns.get(&conn).map_or(usize::MAX, |conn| conn.asked.len());
            if used < self.options.requests {
                self.send(conn, Request::Take { fill, range }, Asked::Copy(fill));
            } else {
                self.takes.push_back((conn, range));
            }
        }
    }

    fn greet_when_due(&mut self, now_ms: u64, first: ConnId) {
        let Some(conn) = self.conns.get(&first) else { return };
        if conn.asked.iter().any(|asked| matches!(asked, Asked::Hello)) {
            return;
        }
        let waited = now_ms.saturating_sub(self.greeted_at) >= ASK_AGAIN_MS;
        let again = match self.verdict {
            Some(Verdict::Drain) => {
                let drained = self.state.replayed >= self.durable() && !self.unflushed;
                drained || (waited && self.must_greet)
            }
            Some(Verdict::Apart { .. }) => waited,
            _ => self.must_greet,
        };
        if !again {
            return;
        }
        self.must_greet = false;
        self.greeted_at = now_ms;
        let settings = self.options.settings;
        let hello = Hello {
            version_min: VERSION,
            version_max: VERSION,
            features: FEATURE_OFFER
                | FEATURE_PACKED
                | FEATURE_HEAL
                | FEATURE_LOST
                | if self.options.lz4 { FEATURE_LZ4 } else { 0 },
            resource: settings.resource,
            from: self.node,
            to: self.leader,
            size: self.options.size,
            bundle: self.bundle,
            report: self.report(),
        };
        self.send(first, Request::Hello(hello), Asked::Hello);
    }

    fn report_when_due(&mut self, now_ms: u64, first: ConnId) {
        let Some(conn) = self.conns.get(&first) else { return };
        let waiting = conn.asked.iter().filter(|asked| matches!(asked, Asked::Await(_))).count();
        let last = self.log.as_ref().and_then(|log| {
            log.journal().durable_segments().last().map(|(header, _)| header.number)
        });
        let segment = last.unwrap_or(if self.state.state == FollowState::Filling {
            self.state.fill_segment
        } else {
            0
        });
        let take = self.copied.len().min(MAX_COPIED);
        let report = Await {
            state: self.state.state,
            fill: self.state.fill,
            fetched: self.durable(),
            replayed: self.state.replayed,
            fetch_paused: self.state.fetch_paused,
            replay_paused: self.state.replay_paused,
            known: self.fetcher.known(),
            segment,
            wait_ms: WAIT_MS,
            copied: self.copied[..take].to_vec(),
        };
        let changed = self.reported.as_ref().is_none_or(|(last, at)| {
            let long = now_ms.saturating_sub(*at) >= REPORT_MS;
            long && (*last != report)
        });
        if waiting > 1 || (waiting == 1 && !changed) {
            return;
        }
        self.copied.drain(..take);
        let told = Await { copied: Vec::new(), ..report.clone() };
        self.reported = Some((told, now_ms));
        let copied = !report.copied.is_empty();
        self.send(first, Request::Await(report), Asked::Await(copied));
    }
}
