//! The part of the thread that scrubs its disk, and tells what becomes of blocks without a good copy.

use super::super::scrub::{Scrub, ScrubCall, allowed};
use super::super::show::unkept;
use super::{FollowView, Order, Thread};
use crate::keeper;
use crate::survey;
use holdfast_core::{Command, Notice, Refusal, SurveyEnd, SurveyKind, SurveyProgress};
use holdfast_journal::ship::Healed;
use std::time::{Duration, Instant};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

/// How often it is told what was lost and what was healed.
const TELL: Duration = Duration::from_secs(1);
/// While it is being looked for what was lost, it is told so often.
const TRIED: Duration = Duration::from_secs(10);
/// How often it is looked how fast a scrub may be.
const RATE: Duration = Duration::from_millis(500);

/// What is asked of the scrub of a node that follows.
#[derive(Clone)]
pub(crate) struct FollowScrub {
    orders: mpsc::Sender<Order>,
    view: watch::Receiver<FollowView>,
    notices: broadcast::Sender<Notice>,
}

impl FollowScrub {
    pub(super) const fn new(
        orders: mpsc::Sender<Order>,
        view: watch::Receiver<FollowView>,
        notices: broadcast::Sender<Notice>,
    ) -> Self {
        Self { orders, view, notices }
    }

    /// Tells of scrubs that end.
    pub(crate) fn notices(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }

    /// How the one goes that goes on.
    pub(crate) fn progress(&self) -> Option<SurveyProgress> {
        self.view.borrow().scrub.clone()
    }

    /// The bytes that a scrub would read.
    pub(crate) fn size(&self) -> u64 {
        self.view.borrow().size
    }

    /// Begins one, or does something to it.
    ///
    /// # Errors
    /// When one goes on already, or none does, or it is nothing that a node which follows does.
    pub(crate) async fn command(&self, command: Command) -> Result<(), Refusal> {
        let call = match command {
            Command::Survey(order) if order.kind == SurveyKind::Scrub => {
                ScrubCall::Begin(order.from)
            }
            Command::SurveyControl(SurveyKind::Scrub, action) => ScrubCall::Act(action),
            _ => return Err(Refusal::NoSurvey),
        };
        let (done, end) = oneshot::channel();
        if self.orders.send(Order::Scrub(call, done)).await.is_err() {
            return Err(Refusal::Diskless);
        }
        end.await.unwrap_or(Err(Refusal::Diskless))
    }
}

/// A scrub, and what was told of the disk.
pub(super) struct Tended {
    scrub: Option<Scrub>,
    notices: broadcast::Sender<Notice>,
    /// The limit of a scrub in bytes a second, and when that was looked up.
    rate: (u64, Instant),
    /// So many were healed, and there were so many, when that was told, and when.
    told: (u64, u64, Instant),
    /// It was told that the list of lost blocks cannot be kept.
    unkept: bool,
}

impl Tended {
    pub(super) fn new(notices: broadcast::Sender<Notice>) -> Self {
        let now = Instant::now();
        Self { scrub: None, notices, rate: (0, now), told: (0, 0, now), unkept: false }
    }

    pub(super) fn progress(&self) -> Option<SurveyProgress> {
        self.scrub.as_ref().map(Scrub::progress)
    }
}

impl Thread {
    pub(super) fn scrub_call(&mut self, call: &ScrubCall) -> Result<(), Refusal> {
        allowed(self.tended.scrub.as_ref(), call)?;
        match call {
            ScrubCall::Begin(from) => {
                if let Some(logic) = &mut self.logic {
                    logic.heal_again();
                }
                self.tended.rate.0 = self.scrub_rate();
                self.tended.scrub = Some(Scrub::new(*from, self.place.size));
            }
            ScrubCall::Act(action) => {
                let end = self.tended.scrub.as_mut().and_then(|scrub| scrub.act(*action));
                if let Some(end) = end {
                    self.end_scrub(end);
                }
            }
        }
        Ok(())
    }

    fn scrub_rate(&self) -> u64 {
        survey::scrub_rate(&self.notice.node, self.place.resource)
    }

    fn end_scrub(&mut self, end: SurveyEnd) {
        let Some(scrub) = self.tended.scrub.take() else { return };
        let notice = Notice::SurveyEnded(end, Box::new(scrub.progress()));
        self.tell_notice(&notice);
        // Who keeps the reports may be about to go.
        let _ = self.tended.notices.send(notice);
    }

    fn tell_notice(&self, notice: &Notice) {
        let name = self.notice.resource.name();
        keeper::tell_of_own(&self.notice.node, &name, notice);
    }

    /// Does what a scrub may do now. Whether there is more to do at once.
    pub(super) fn scrub_on(&mut self) -> bool {
        let now = Instant::now();
        if self.tended.scrub.is_some() && now.duration_since(self.tended.rate.1) >= RATE {
            self.tended.rate = (self.scrub_rate(), now);
        }
        let rate = self.tended.rate.0;
        let (Some(scrub), Some(logic)) = (&mut self.tended.scrub, &mut self.logic) else {
            return false;
        };
        if scrub.is_looking() && !logic.is_looking() {
            scrub.looked(logic.take_found());
        }
        if scrub.is_through() {
            self.end_scrub(SurveyEnd::Done);
            return false;
        }
        let status = logic.status();
        let work = status.replayed.0.wrapping_add(status.received);
        if let Some(range) = scrub.next(now, rate, work) {
            // Those that were found otherwise are not the scrub's.
            logic.take_found();
            logic.look_at(range);
            return true;
        }
        logic.is_looking() || scrub.goes_on()
    }

    /// The disk was opened anew: what was being looked at is looked at again.
    pub(super) fn look_again(&mut self) {
        let range = self.tended.scrub.as_ref().and_then(Scrub::again);
        if let (Some(range), Some(logic)) = (range, &mut self.logic) {
            logic.look_at(range);
        }
    }

    /// Tells when the list of lost blocks cannot be kept any more, and when it can be again.
    pub(super) fn tell_unkept(&mut self, view: &FollowView) {
        let problem = unkept(view);
        if problem.is_some() == self.tended.unkept {
            return;
        }
        self.tended.unkept = problem.is_some();
        self.notice.tell(problem.as_deref().unwrap_or("the list of lost blocks is kept again"));
    }

    /// Tells what was lost and what was healed since it was told last.
    pub(super) fn tell_healing(&mut self, now: &Healed) {
        let (healed, blocks, at) = self.tended.told;
        let least = if now.trying { TRIED } else { TELL };
        if (healed, blocks) == (now.healed, now.blocks) || at.elapsed() < least {
            return;
        }
        let (healed, lost) = (now.healed.saturating_sub(healed), now.blocks.saturating_sub(blocks));
        self.tended.told = (now.healed, now.blocks, Instant::now());
        if healed > 0 {
            self.tell_notice(&Notice::Healed(healed));
        }
        if let (true, Some(first)) = (lost > 0, now.first.first()) {
            self.tell_notice(&Notice::Unreadable { first: *first, blocks: lost });
        }
    }
}
