//! A node that leads and some that follow it, through cuts, crashes and damage.
//! `HOLDFAST_SHIP_SEEDS` says how many runs (30).
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod support;

use holdfast_format::journal::PeerCursor;
use holdfast_journal::ship::{
    Answer, ConnId, FEATURE_OFFER, FollowOptions, FollowStatus, Follower, Head, Holding, Leader,
    Notes as _, Offer, RefuseCode, Request, Trouble, VERSION, Verdict, Welcome,
};
use holdfast_journal::{RangeSet, Settings};
use holdfast_units::{ByteRange, GenerationId, HybridTime, LogPosition};
use support::ship::{EPOCH_MS, Node, RESOURCE, SIZE, Secondary, Store, World, node};
use support::{Sim, State};

fn seeds() -> u64 {
    std::env::var("HOLDFAST_SHIP_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(30)
}

/// What may happen in a round of trouble.
fn trouble(world: &mut World) {
    let followers = world.secondaries.len() as u64;
    let one = usize::try_from(world.dice.below(followers)).unwrap();
    match world.dice.below(26) {
        0 => world.crash_secondary(one),
        1 | 2 => world.plan_crash(one),
        3 => world.crash_primary(),
        4 => world.start_primary(),
        5 | 6 => {
            let wires = world.wire_ids();
            if !wires.is_empty() {
                let index = usize::try_from(world.dice.below(wires.len() as u64)).unwrap();
                world.cut_wire(wires[index]);
            }
        }
        7 => world.may_connect = false,
        8 | 9 => world.may_connect = true,
        10 => {
            let (fetch, replay) = (world.dice.one_in(3), world.dice.one_in(3));
            if let Some(node) = world.secondaries[one].follower.as_mut() {
                // It may fail in the middle of a planned crash.
                let _ = node.set_switches(fetch, replay);
            }
        }
        11 => {
            let delay = world.dice.below(3) * 300;
            if let Some(node) = world.secondaries[one].follower.as_mut() {
                node.set_delay(delay);
            }
        }
        12 => world.damage = world.dice.one_in(2),
        13 => world.rot_secondary(one),
        14 => {
            // In the middle of recovering.
            world.crash_secondary(one);
            world.start_secondary(one);
            let Some(node) = world.secondaries[one].follower.as_mut() else { return };
            node.set_delay(world.dice.below(2) * 300);
            let _ = node.set_switches(world.dice.one_in(3), world.dice.one_in(3));
            if world.dice.one_in(2) {
                world.stop_secondary(one);
                world.start_secondary(one);
            }
            world.check();
        }
        15 => rewind(world, one),
        16 | 17 => {
            let (first, many) = (world.dice.below(SIZE / 4096 - 8), 1 + world.dice.below(8));
            world.spoil(one, first..first + many);
            world.look(one);
        }
        18 => world.look(one),
        19 => {
            let (first, many) = (world.dice.below(SIZE / 4096 - 8), 1 + world.dice.below(8));
            world.spoil_primary(first..first + many);
        }
        20 => world.restore_primary(),
        21 | 22 => {
            world.readable_again(one);
            world.look(one);
        }
        23 => world.clocks.0 = jump(world),
        24 => world.clocks.1 = jump(world),
        _ => {
            world.start_secondary(one);
            world.check();
        }
    }
}

const DAYS_30: i64 = 30 * 86_400_000;

/// What a clock is ahead of when it jumps.
fn jump(world: &mut World) -> i64 {
    EPOCH_MS + [0, 1000, -1000, DAYS_30, -DAYS_30][usize::try_from(world.dice.below(5)).unwrap()]
}

/// Has a follower replay up to somewhere and stay there.
fn rewind(world: &mut World, one: usize) {
    let part = world.dice.below(101);
    let Some(node) = world.secondaries[one].follower.as_mut() else { return };
    let status = node.status();
    let Holding::StateAt(at) = status.holding else { return };
    let to = at.after(status.fetched.since(at) * part / 100);
    // It may fail in the middle of a planned crash.
    if node.set_switches(false, true).is_ok() && node.rewind(at, to).is_ok_and(|begun| begun) {
        world.rewinds += 1;
    }
}

fn run(seed: u64) -> World {
    let mut dice = support::Dice::new(seed ^ 0x5eed);
    let followers = 1 + u8::try_from(dice.below(3)).unwrap();
    let budget = (4 + dice.below(12)) * 16 * 4096;
    let mut world = World::new(dice.below(u64::MAX), followers, budget);
    for follower in 0..usize::from(followers) {
        if dice.one_in(2) {
            world.secondaries[follower].budget = budget;
        }
        if dice.one_in(2) {
            world.secondaries[follower].replay = 4 << 10;
        }
    }
    if dice.one_in(3) {
        world.begin_small();
    }
    let grows = dice.below(4);
    for turn in 0..4 {
        let moment = dice.below(150);
        let rounds = 20 + world.dice.below(150);
        for round in 0..rounds {
            if turn == grows && round == moment.min(rounds - 1) {
                world.agree_on_all();
            }
            let writes = world.dice.below(4);
            (0..writes).for_each(|_| world.client());
            if world.dice.one_in(4) {
                trouble(&mut world);
            }
            let ms = 1 + world.dice.below(60);
            world.step(ms);
            world.check();
        }
        world.heal();
    }
    world
}

#[test]
fn a_disk_is_always_a_state_of_the_origin_and_ends_equal() {
    let first = std::env::var("HOLDFAST_SHIP_SEED").ok().and_then(|n| n.parse().ok());
    let range = first.map_or(0..seeds(), |seed: u64| seed..seed + 1);
    let (mut fills, mut rewinds) = (0, 0);
    for seed in range {
        let result = std::panic::catch_unwind(|| run(seed)).map(|w| (w.fills, w.rewinds));
        match result {
            Ok(counts) => (fills, rewinds) = (fills + counts.0, rewinds + counts.1),
            Err(_) => panic!("it fails with HOLDFAST_SHIP_SEED={seed}"),
        }
    }
    assert!((fills > 0 && rewinds > 0) || first.is_some());
}

/// Lets both sides do what they can for so many steps of 10 ms.
fn run_on(world: &mut World, steps: usize) {
    for _ in 0..steps {
        world.step(10);
        world.check();
    }
}

fn status(secondary: &Secondary) -> FollowStatus {
    secondary.follower.as_ref().unwrap().status()
}

/// One follower that has everything of a disk that was written to.
fn in_step(seed: u64, budget_segments: u64) -> World {
    let mut world = World::new(seed, 1, budget_segments * 16 * 4096);
    (0..40).for_each(|_| world.client());
    world.heal();
    world
}

#[test]
fn a_connection_that_ends_late_does_not_end_the_one_that_stands() {
    let mut world = in_step(1, 60);
    world.notices = false;
    let first = world.wires_of(0)[0];
    world.cut_wire(first);
    run_on(&mut world, 100);
    assert!(world.is_served(0), "it is there again before the leader knows that it was away");
    world.close_late();
    assert!(world.is_served(0));
    world.notices = true;
    world.heal();
}

#[test]
fn after_an_outage_that_the_journal_bridges_nothing_is_filled() {
    let mut world = in_step(1, 60);
    let fills = world.fills;
    world.may_connect = false;
    let first = world.wires_of(0)[0];
    world.cut_wire(first);
    for _ in 0..60 {
        world.client();
        run_on(&mut world, 1);
        assert_eq!(status(&world.secondaries[0]).head, status(&world.secondaries[0]).fetched);
    }
    let holding = status(&world.secondaries[0]).holding;
    assert!(matches!(holding, Holding::StateAt(_)), "{holding:?}");
    world.heal();
    assert_eq!(world.fills, fills, "it was never inconsistent");
}

#[test]
fn after_a_long_outage_each_block_that_changed_is_sent_once() {
    for seed in 0..4 {
        let mut world = in_step(seed, 5);
        world.may_connect = false;
        let first = world.wires_of(0)[0];
        world.cut_wire(first);
        // Much more than the budget, again and again over the same blocks.
        for n in 0..600 {
            let block = 7 * (n % 9);
            world.write(5, block, 2);
            run_on(&mut world, 1);
        }
        let budget = world.primary.log.as_ref().unwrap().journal().status().bytes;
        assert!(budget <= 7 * 16 * 4096, "the outage does not make the journal grow: {budget}");
        let (sent, received) = (world.sent, status(&world.secondaries[0]).received);
        world.heal();
        let dirty = 9 * 2 * 4096_u64;
        let copied = status(&world.secondaries[0]).received - received;
        assert!(copied * 10 <= dirty * 11, "seed {seed}: {copied} for {dirty}");
        assert!(world.sent - sent <= dirty * 3 / 2, "with all that was said around it");
        assert_eq!(world.fills, 2);
    }
}

#[test]
fn switches_do_not_depend_on_each_other_and_survive() {
    let mut world = in_step(5, 60);
    let set = |world: &mut World, fetch, replay| {
        let node = world.secondaries[0].follower.as_mut().unwrap();
        node.set_switches(fetch, replay).unwrap();
    };
    set(&mut world, false, true);
    let before = status(&world.secondaries[0]);
    (0..20).for_each(|_| world.client());
    world.primary.log.as_mut().unwrap().flush().unwrap();
    world.record();
    run_on(&mut world, 200);
    let after = status(&world.secondaries[0]);
    assert_eq!(after.replayed, before.replayed, "the disk stays");
    assert!(after.fetched > before.fetched && after.fetched == after.head, "the journal comes");
    // After a crash it is still so.
    world.crash_secondary(0);
    world.start_secondary(0);
    run_on(&mut world, 100);
    let again = status(&world.secondaries[0]);
    assert!(again.replay_paused && !again.fetch_paused);
    assert_eq!((again.replayed, again.fetched), (after.replayed, after.fetched));
    set(&mut world, true, false);
    (0..20).for_each(|_| world.client());
    world.primary.log.as_mut().unwrap().flush().unwrap();
    world.record();
    run_on(&mut world, 200);
    let last = status(&world.secondaries[0]);
    assert_eq!((last.fetched, last.replayed), (after.fetched, after.fetched));
    assert!(last.head > last.fetched && last.fetch_lag_ms >= 1000, "{last:?}");
    world.heal();
}

/// Writes for three seconds with a delay of two: nothing of the last two seconds is on the disk, and
/// not much more is held back. `meanwhile` is told how many milliseconds have gone by, and says since
/// when that can be expected.
fn is_held_behind(world: &mut World, mut meanwhile: impl FnMut(&mut World, u64) -> u64) {
    world.secondaries[0].follower.as_mut().unwrap().set_delay(2000);
    let mut written = Vec::new();
    let begun = world.now;
    for _ in 0..500 {
        if world.now - begun < 3500 {
            world.client();
            world.primary.log.as_mut().unwrap().flush().unwrap();
            world.record();
        }
        let durable = world.primary.log.as_ref().unwrap().journal().durable();
        if written.last().is_none_or(|(_, last)| *last < durable) {
            written.push((world.now, durable));
        }
        let since = meanwhile(world, world.now - begun);
        run_on(world, 1);
        let replayed = status(&world.secondaries[0]).replayed;
        let may = written.iter().rfind(|(at, _)| at + 2000 <= world.now);
        let must = written.iter().rfind(|(at, _)| at + 3000 <= world.now);
        if let Some((_, position)) = may {
            assert!(replayed <= *position, "{replayed} {position}");
        }
        if let Some((_, position)) = must.filter(|_| since <= world.now - begun) {
            assert!(replayed >= *position, "{replayed} {position}");
        }
    }
    let all =
        written.last().is_some_and(|(_, last)| status(&world.secondaries[0]).replayed < *last);
    assert!(all, "the delay still counts");
    world.heal();
}

#[test]
fn a_delay_holds_the_disk_behind_by_time() {
    is_held_behind(&mut in_step(6, 60), |_, _| 0);
}

#[test]
fn a_leaders_clock_that_jumps_has_nothing_replayed_early_nor_held_for_ever() {
    for (seed, ahead) in (20..).zip([DAYS_30, -DAYS_30]) {
        for stays in [false, true] {
            is_held_behind(&mut in_step(seed, 60), |world, ms| {
                let jumped = ms >= 1000 && (stays || ms < 1100);
                world.clocks.0 = EPOCH_MS + if jumped { ahead } else { 0 };
                0
            });
        }
    }
}

#[test]
fn a_restart_does_not_begin_a_delay_anew_and_believes_no_clock_that_is_ahead() {
    for (seed, own, leaders) in
        [(30, 0, 0), (31, DAYS_30, 0), (32, -DAYS_30, 0), (33, 0, DAYS_30), (34, 0, -DAYS_30)]
    {
        is_held_behind(&mut in_step(seed, 60), |world, ms| {
            if ms == 1500 {
                world.clocks = (EPOCH_MS + leaders, EPOCH_MS + own);
                world.crash_secondary(0);
                world.start_secondary(0);
                world.secondaries[0].follower.as_mut().unwrap().set_delay(2000);
            }
            // With a clock that is no help it is held no longer than the delay, once it is met again.
            if own < 0 || leaders != 0 { 4500 } else { 0 }
        });
    }
}

#[test]
fn a_delay_counts_by_itself_while_no_leader_is_in_reach() {
    for (seed, own) in [(40, 0), (41, DAYS_30), (42, -DAYS_30)] {
        let mut world = in_step(seed, 60);
        world.secondaries[0].follower.as_mut().unwrap().set_delay(2000);
        let before = status(&world.secondaries[0]).replayed;
        (0..30).for_each(|_| world.client());
        world.primary.log.as_mut().unwrap().flush().unwrap();
        world.record();
        run_on(&mut world, 100);
        world.may_connect = false;
        world.clocks.1 = EPOCH_MS + own;
        world.crash_secondary(0);
        world.start_secondary(0);
        world.secondaries[0].follower.as_mut().unwrap().set_delay(2000);
        run_on(&mut world, 190);
        let held = status(&world.secondaries[0]);
        assert!(held.replayed == before && held.fetched > before, "{own}: {held:?}");
        run_on(&mut world, 30);
        assert_eq!(status(&world.secondaries[0]).replayed, held.fetched);
        world.heal();
    }
}

#[test]
fn what_another_leader_writes_in_the_same_place_is_as_young_as_it_is() {
    let mut world = World::new(60, 2, 60 * 16 * 4096);
    (0..40).for_each(|_| world.client());
    world.heal();
    for secondary in &mut world.secondaries {
        secondary.follower.as_mut().unwrap().set_switches(true, false).unwrap();
    }
    world.secondaries[0].follower.as_mut().unwrap().set_delay(2000);
    let write = |world: &mut World| {
        (0..10).for_each(|_| world.client());
        world.primary.log.as_mut().unwrap().flush().unwrap();
        world.record();
    };
    write(&mut world);
    run_on(&mut world, 150);
    let heard = status(&world.secondaries[0]);
    assert!(heard.head > heard.fetched, "{heard:?}");
    // Nobody else has it, and the node that has it is gone.
    world.force(1);
    world.secondaries[0].follower.as_mut().unwrap().set_switches(false, false).unwrap();
    write(&mut world);
    run_on(&mut world, 150);
    let held = status(&world.secondaries[0]);
    assert!(held.fetched > heard.fetched && held.replayed == heard.replayed, "{held:?}");
    run_on(&mut world, 150);
    assert_eq!(status(&world.secondaries[0]).replayed, held.fetched);
}

#[test]
fn a_delay_does_not_hold_up_who_is_to_be_filled() {
    let mut world = in_step(50, 5);
    let delay = u64::try_from(DAYS_30).unwrap();
    world.secondaries[0].follower.as_mut().unwrap().set_delay(delay);
    (0..10).for_each(|_| world.client());
    run_on(&mut world, 100);
    let held = status(&world.secondaries[0]);
    assert!(held.fetched > held.replayed, "{held:?}");
    world.may_connect = false;
    let first = world.wires_of(0)[0];
    world.cut_wire(first);
    (0..600).for_each(|n| {
        world.write(5, 7 * (n % 9), 2);
        run_on(&mut world, 1);
    });
    let held = status(&world.secondaries[0]).replayed;
    let fills = world.fills;
    world.may_connect = true;
    let durable = world.primary.log.as_ref().unwrap().journal().durable();
    run_on(&mut world, 1500);
    let filled = status(&world.secondaries[0]);
    assert!(filled.replayed > held && filled.replayed >= durable, "{filled:?}");
    assert!(world.fills == fills + 1 && matches!(filled.holding, Holding::StateAt(_)));
    // From then on the delay counts.
    world.client();
    run_on(&mut world, 100);
    assert_eq!(status(&world.secondaries[0]).replayed, filled.replayed);
    world.heal();
}

#[test]
fn the_way_is_drained_and_the_other_node_leads_from_the_very_end() {
    let mut world = World::new(7, 2, 60 * 16 * 4096);
    (0..60).for_each(|_| world.client());
    world.heal();
    // There and back, several times; the third node follows whoever leads.
    for turn in 0..4 {
        world.hand_over(0);
        (0..30).for_each(|_| world.client());
        if turn % 2 == 1 {
            world.crash_primary();
        }
        let fills = world.fills;
        world.heal();
        assert_eq!(world.fills, fills, "turn {turn}: everybody goes on by the journal");
    }
}

#[test]
fn two_that_went_on_apart_are_told_and_nothing_is_replayed_behind_the_fork() {
    let mut world = World::new(8, 2, 60 * 16 * 4096);
    (0..40).for_each(|_| world.client());
    world.heal();
    // The second follower hears of more than the first one, which is promoted by force, and has replayed
    // less.
    world.secondaries[1].follower.as_mut().unwrap().set_switches(false, true).unwrap();
    (0..10).for_each(|_| world.client());
    world.primary.log.as_mut().unwrap().flush().unwrap();
    world.record();
    run_on(&mut world, 100);
    let first = world.wires_of(0)[0];
    world.may_connect = false;
    world.cut_wire(first);
    (0..10).for_each(|_| world.client());
    world.primary.log.as_mut().unwrap().flush().unwrap();
    world.record();
    run_on(&mut world, 100);
    let fork = status(&world.secondaries[0]).fetched;
    let ahead = status(&world.secondaries[1]).fetched;
    assert!(ahead > fork);
    world.force(0);
    world.may_connect = true;
    let before: Vec<_> = world.secondaries.iter().map(|s| status(s).replayed).collect();
    (0..15).for_each(|_| world.client());
    run_on(&mut world, 300);
    for (follower, before) in before.into_iter().enumerate() {
        let status = status(&world.secondaries[follower]);
        let Some(Verdict::Apart { common, follower: theirs, leader, .. }) = status.verdict else {
            panic!("follower {follower}: {:?}", status.verdict);
        };
        assert_eq!(common, Some(fork));
        assert_eq!(theirs, ahead.since(fork));
        assert!(leader > 0 && !status.follows);
        assert_eq!(status.replayed, before, "nothing of the other history");
    }
    assert_eq!(world.fills, 2, "nobody's data are overwritten unasked");
    // What was fetched of the other history and not replayed stays so, also after a crash.
    world.secondaries[1].follower.as_mut().unwrap().set_switches(false, false).unwrap();
    run_on(&mut world, 100);
    assert_eq!(status(&world.secondaries[1]).replayed, fork);
    world.crash_secondary(1);
    world.start_secondary(1);
    run_on(&mut world, 100);
    assert_eq!(status(&world.secondaries[1]).replayed, fork);
    assert_eq!(
        status(&world.secondaries[1]).holding,
        Holding::StateAt(fork),
        "a crash changes nothing"
    );
    // Whoever leads is lost: it is to lead itself, with all that it has.
    world.may_connect = false;
    world.wire_ids().into_iter().for_each(|wire| world.cut_wire(wire));
    world.secondaries[1].follower.as_mut().unwrap().set_fork(None).unwrap();
    world.crash_secondary(1);
    world.start_secondary(1);
    run_on(&mut world, 100);
    let last = status(&world.secondaries[1]);
    assert_eq!((last.replayed, last.holding), (ahead, Holding::StateAt(ahead)));
}

#[test]
fn who_hears_of_the_fork_while_it_replays_stops_there_also_after_a_crash() {
    let mut early = 0;
    for seed in 0..20 {
        let mut world = World::new(400 + seed, 2, 60 * 16 * 4096);
        world.secondaries[1].replay = 4 << 10;
        (0..40).for_each(|_| world.client());
        world.heal();
        let switch = |world: &mut World, paused| {
            let node = world.secondaries[1].follower.as_mut().unwrap();
            node.set_switches(false, paused).unwrap();
        };
        let ship = |world: &mut World| {
            (0..20).for_each(|_| world.client());
            world.primary.log.as_mut().unwrap().flush().unwrap();
            world.record();
            run_on(world, 100);
        };
        switch(&mut world, true);
        ship(&mut world);
        world.may_connect = false;
        let first = world.wires_of(0)[0];
        world.cut_wire(first);
        ship(&mut world);
        let fork = status(&world.secondaries[0]).fetched;
        world.force(0);
        switch(&mut world, false);
        world.may_connect = true;
        let heard = |status: &FollowStatus| matches!(status.verdict, Some(Verdict::Apart { .. }));
        while !heard(&status(&world.secondaries[1])) {
            run_on(&mut world, 1);
        }
        let replayed = status(&world.secondaries[1]).replayed;
        early += u64::from(replayed < fork);
        world.crash_secondary(1);
        world.start_secondary(1);
        run_on(&mut world, 300);
        let last = status(&world.secondaries[1]);
        assert_eq!(last.replayed, replayed.max(fork), "seed {seed}");
    }
    assert!(early > 0);
}

#[test]
fn a_crash_before_it_heard_of_the_fork_leaves_a_state_all_the_same() {
    let mut apart = 0;
    for step in 0..60 {
        let mut world = World::new(300 + step, 2, 60 * 16 * 4096);
        world.secondaries[1].replay = 4 << 10;
        (0..40).for_each(|_| world.client());
        world.heal();
        // Its journal has a part of what only it has when it crashes, its disk a part of that.
        let first = world.wires_of(0)[0];
        world.may_connect = false;
        world.cut_wire(first);
        (0..30).for_each(|_| world.client());
        world.primary.log.as_mut().unwrap().flush().unwrap();
        world.record();
        world.fail_at(1, 20 + usize::try_from(step).unwrap());
        run_on(&mut world, 40);
        world.crash_secondary(1);
        world.force(0);
        world.may_connect = true;
        (0..15).for_each(|_| world.client());
        world.start_secondary(1);
        run_on(&mut world, 300);
        let status = status(&world.secondaries[1]);
        if matches!(status.verdict, Some(Verdict::Apart { .. })) {
            apart += 1;
            assert!(matches!(status.holding, Holding::StateAt(_)), "step {step}: {status:?}");
        }
    }
    assert!(apart > 0);
}

#[test]
fn what_was_said_to_be_inconsistent_stays_so_until_it_is_whole() {
    // Crashes at every step of a first filling.
    for step in 0..120 {
        let mut world = World::new(100 + step, 1, 60 * 16 * 4096);
        (0..30).for_each(|_| world.client());
        world.start_secondary(0);
        world.fail_at(0, usize::try_from(step).unwrap());
        run_on(&mut world, 60);
        world.crash_secondary(0);
        world.start_secondary(0);
        world.check();
        world.heal();
    }
}

#[test]
fn what_was_copied_before_it_was_durable_is_copied_again_when_the_leader_lost_it() {
    for seed in 0..400 {
        let mut world = World::new(1000 + seed, 1, 60 * 16 * 4096);
        (0..30).for_each(|_| world.client());
        world.primary.log.as_mut().unwrap().flush().unwrap();
        world.record();
        world.start_secondary(0);
        // With a new hello the note is stored, somewhere in the middle of the copying.
        for steps in [6 + world.dice.below(8), 3 + world.dice.below(4)] {
            for _ in 0..steps {
                if world.dice.one_in(2) {
                    world.write_unflushed();
                }
                run_on(&mut world, 1);
            }
            if let Some(first) = world.wires_of(0).first() {
                world.cut_wire(*first);
            }
        }
        world.crash_primary();
        world.heal();
    }
}

/// Has the Primary write the same blocks again and again, much more than its budget.
fn write_much(world: &mut World, first: u64) {
    for n in 0..120 {
        world.write(5, first + n % 9, 2);
        run_on(world, 1);
    }
}

#[test]
fn a_note_that_cannot_be_stored_holds_nobody_up_and_costs_a_copy_of_everything() {
    for stuck in [false, true] {
        let mut world = in_step(3, 5);
        world.may_connect = false;
        let first = world.wires_of(0)[0];
        world.cut_wire(first);
        (world.primary.notes.full, world.primary.notes.stuck) = (true, stuck);
        write_much(&mut world, 0);
        let bytes = world.primary.log.as_ref().unwrap().journal().status().bytes;
        assert!(bytes <= 7 * 16 * 4096, "the journal is cut: {bytes}");
        world.crash_primary();
        world.start_primary();
        (world.primary.notes.full, world.primary.notes.stuck) = (false, false);
        let received = status(&world.secondaries[0]).received;
        world.heal();
        assert!(status(&world.secondaries[0]).received - received >= 96 * 4096);
    }
}

#[test]
fn an_older_note_that_could_not_be_taken_away_does_not_count() {
    let mut filling = 0;
    for step in 0..12 {
        let mut world = in_step(1500 + step, 5);
        let part = |world: &mut World| {
            world.may_connect = false;
            world.wires_of(0).into_iter().for_each(|id| world.cut_wire(id));
        };
        // It is to be filled with a part, and crashes when it has just begun with it.
        part(&mut world);
        write_much(&mut world, 0);
        world.may_connect = true;
        world.fail_at(0, usize::try_from(step).unwrap());
        run_on(&mut world, 30);
        part(&mut world);
        world.crash_secondary(0);
        world.start_secondary(0);
        filling += u64::from(status(&world.secondaries[0]).holding == Holding::Filling);
        // What is cut now is noted, then it is not; the blocks of then are not written any more.
        write_much(&mut world, 20);
        (world.primary.notes.full, world.primary.notes.stuck) = (true, true);
        write_much(&mut world, 40);
        write_much(&mut world, 60);
        world.crash_primary();
        world.start_primary();
        (world.primary.notes.full, world.primary.notes.stuck) = (false, false);
        world.heal();
    }
    assert!(filling > 2, "{filling}");
}

/// Puts a follower into the middle of recovering: it crashed while it replayed much.
fn recovering(seed: u64) -> Option<World> {
    let mut world = in_step(seed, 60);
    let set = |world: &mut World, replay| {
        world.secondaries[0].follower.as_mut().unwrap().set_switches(false, replay).unwrap();
    };
    set(&mut world, true);
    (0..60).for_each(|_| world.client());
    world.primary.log.as_mut().unwrap().flush().unwrap();
    world.record();
    run_on(&mut world, 200);
    set(&mut world, false);
    let steps = usize::try_from(10 + world.dice.below(40)).unwrap();
    world.fail_at(0, steps);
    world.may_connect = false;
    run_on(&mut world, 3);
    world.crash_secondary(0);
    world.start_secondary(0);
    let holding = status(&world.secondaries[0]).holding;
    (holding == Holding::Recovering).then_some(world)
}

#[test]
fn a_follower_that_is_stopped_or_switched_while_it_recovers_goes_on_recovering() {
    let mut tried = 0;
    for seed in 0..60 {
        let Some(mut world) = recovering(seed) else { continue };
        tried += 1;
        match seed % 3 {
            0 => {}
            1 => {
                let node = world.secondaries[0].follower.as_mut().unwrap();
                node.set_switches(false, true).unwrap();
            }
            _ => {
                // What is replayed now is flushed and noted one by one.
                let node = world.secondaries[0].follower.as_mut().unwrap();
                node.set_delay(300);
                world.fail_at(0, 6);
                run_on(&mut world, 3);
            }
        }
        if seed % 3 == 0 {
            world.stop_secondary(0);
        } else {
            world.crash_secondary(0);
        }
        world.secondaries[0].sim.0.borrow_mut().fail_at = usize::MAX;
        world.start_secondary(0);
        world.check();
        run_on(&mut world, 20);
        world.heal();
    }
    assert!(tried > 10, "{tried} of them recover");
}

#[test]
fn an_empty_segment_of_a_history_that_ended_is_no_obstacle() {
    let mut world = World::new(9, 2, 60 * 16 * 4096);
    for _ in 0..2 {
        (0..40).for_each(|_| world.client());
        world.heal();
    }
    // One of two followers hears of a segment of which nobody gets a record.
    world.may_connect = false;
    let first = world.wires_of(0)[0];
    world.cut_wire(first);
    world.primary.log.as_mut().unwrap().begin_segment().unwrap();
    run_on(&mut world, 200);
    let fills = world.fills;
    world.force(0);
    world.may_connect = true;
    (0..40).for_each(|_| world.client());
    world.heal();
    assert_eq!(world.fills, fills, "nothing was lost, and nothing is filled");
}

#[test]
fn a_journal_that_is_small_beside_the_leaders_segments_holds_one_after_the_other() {
    let mut world = World::new(10, 1, 60 * 16 * 4096);
    world.secondaries[0].budget = 13 * 4096;
    for _ in 0..6 {
        (0..60).for_each(|_| world.client());
        world.heal();
    }
    let status = status(&world.secondaries[0]);
    assert!(status.bytes <= 2 * 16 * 4096, "{status:?}");
    assert_eq!(world.fills, 1);
}

#[test]
fn a_journal_whose_own_segments_are_smaller_than_the_leaders_has_room_for_those() {
    let segment = 16 * 4096;
    let mut world = World::new(13, 1, 60 * segment);
    world.secondaries[0].segment = segment / 2;
    // Six of the leader's, and not one more.
    world.secondaries[0].budget = 13 * segment / 2;
    for _ in 0..6 {
        (0..60).for_each(|_| world.client());
        world.heal();
    }
    assert!(status(&world.secondaries[0]).bytes <= 13 * segment / 2);
    assert_eq!(world.fills, 1);
}

#[test]
fn a_journal_that_follows_can_be_made_larger_and_smaller_while_it_is_in_use() {
    let mut world = in_step(12, 60);
    let node = |world: &mut World, paused, segments: u64| {
        let node = world.secondaries[0].follower.as_mut().unwrap();
        node.set_switches(false, paused).unwrap();
        node.set_budget(segments * 16 * 4096);
    };
    node(&mut world, true, 4);
    write_much(&mut world, 0);
    world.primary.log.as_mut().unwrap().flush().unwrap();
    world.record();
    run_on(&mut world, 200);
    let full = status(&world.secondaries[0]);
    assert!(full.trouble == Some(Trouble::NoRoom) && full.fetched < full.head, "{full:?}");
    assert!(full.bytes <= 4 * 16 * 4096, "{full:?}");
    node(&mut world, true, 40);
    run_on(&mut world, 200);
    let larger = status(&world.secondaries[0]);
    assert!(larger.trouble.is_none() && larger.fetched == larger.head, "{larger:?}");
    // Smaller: what is not replayed stays, the rest goes.
    node(&mut world, true, 6);
    run_on(&mut world, 50);
    assert_eq!(status(&world.secondaries[0]).bytes, larger.bytes);
    node(&mut world, false, 6);
    run_on(&mut world, 200);
    assert!(status(&world.secondaries[0]).bytes <= 6 * 16 * 4096);
    world.heal();
}

#[test]
fn a_disk_on_its_way_is_no_state_whatever_happens_before_it_is_there() {
    let mut interrupted = 0;
    for step in 0..80 {
        let mut world = in_step(300 + step, 60);
        let set = |world: &mut World| {
            let node = world.secondaries[0].follower.as_mut();
            node.is_some_and(|node| node.set_switches(false, true).is_ok())
        };
        assert!(set(&mut world));
        (0..60).for_each(|_| world.client());
        world.primary.log.as_mut().unwrap().flush().unwrap();
        world.record();
        run_on(&mut world, 100);
        let held = status(&world.secondaries[0]);
        assert!(held.fetched > held.replayed);
        world.fail_at(0, usize::try_from(step / 2).unwrap());
        let node = world.secondaries[0].follower.as_mut().unwrap();
        if node.rewind(held.replayed, held.fetched).is_ok_and(|begun| begun) {
            run_on(&mut world, 1);
        }
        world.crash_secondary(0);
        // It is interrupted again before it goes on: by a switch, or by an end in good order.
        world.start_secondary(0);
        let node = world.secondaries[0].follower.as_ref().unwrap();
        interrupted += u64::from(node.holding() == Holding::Recovering);
        if step % 2 == 0 {
            assert!(set(&mut world));
            world.crash_secondary(0);
        } else {
            world.stop_secondary(0);
        }
        world.start_secondary(0);
        world.check();
        run_on(&mut world, 200);
        let status = status(&world.secondaries[0]);
        assert!(matches!(status.holding, Holding::StateAt(_)) && status.replay_paused);
        world.heal();
    }
    assert!(interrupted > 10, "{interrupted}");
}

#[test]
fn a_disk_that_is_equal_is_compared_and_not_sent() {
    for seed in 0..4 {
        let mut world = World::new(500 + seed, 1, 60 * 16 * 4096);
        (0..SIZE / 4096).for_each(|block| world.write(5, block, 1));
        world.heal();
        let (sent, fills) = (world.sent, world.fills);
        let node = world.secondaries[0].follower.as_mut().unwrap();
        node.discard().unwrap();
        assert_eq!(node.holding(), Holding::Nothing);
        run_on(&mut world, 60);
        world.heal();
        assert_eq!(world.fills, fills + 1);
        let sent = world.sent - sent;
        assert!(sent < SIZE / 20, "seed {seed}: {sent} bytes for a disk of {SIZE} that is equal");

        // What is different is sent, and little else.
        let (sent, received) = (world.sent, status(&world.secondaries[0]).received);
        let node = world.secondaries[0].follower.as_mut().unwrap();
        node.discard().unwrap();
        (0..3).for_each(|n| world.write(5, 40 * n, 2));
        world.heal();
        let sent = world.sent - sent;
        assert!(sent < SIZE / 20 + 6 * 4096 * 3, "seed {seed}: {sent}");
        assert!(status(&world.secondaries[0]).received - received >= SIZE, "it is all looked at");
    }
}

#[test]
fn what_cannot_be_read_while_it_is_compared_is_sent() {
    let mut world = World::new(600, 1, 60 * 16 * 4096);
    (0..SIZE / 4096).for_each(|block| world.write(5, block, 1));
    world.heal();
    world.secondaries[0].follower.as_mut().unwrap().discard().unwrap();
    world.secondaries[0].sim.0.borrow_mut().unreadable = Some(SIZE / 2 + 5000);
    run_on(&mut world, 60);
    world.heal();
    let unreadable = world.secondaries[0].sim.0.borrow().unreadable;
    assert_eq!(unreadable, None, "it was written");
}

#[test]
fn a_crash_does_not_make_more_be_replayed_than_the_delay_lets() {
    for seed in 0..20 {
        let mut world = in_step(700 + seed, 60);
        world.secondaries[0].follower.as_mut().unwrap().set_delay(60_000);
        (0..30).for_each(|_| world.client());
        world.primary.log.as_mut().unwrap().flush().unwrap();
        world.record();
        run_on(&mut world, 100);
        let held = status(&world.secondaries[0]);
        assert!(held.fetched > held.replayed, "{held:?}");
        world.may_connect = false;
        world.crash_secondary(0);
        world.start_secondary(0);
        world.secondaries[0].follower.as_mut().unwrap().set_delay(60_000);
        run_on(&mut world, 100);
        assert_eq!(status(&world.secondaries[0]).replayed, held.replayed);
        world.heal();
    }
}

#[test]
fn each_generation_is_in_segments_of_its_own() {
    let mut world = in_step(11, 60);
    for turn in 0..6 {
        world.write(5, 20, 1);
        let log = world.primary.log.as_mut().unwrap();
        log.journal_mut().begin_generation(GenerationId(100 + turn));
        let (number, _) = log.begin_segment().unwrap();
        let (header, _) = log.journal().durable_segments().pop().unwrap();
        assert_eq!((header.number, header.generation), (number, GenerationId(100 + turn)));
        (0..=turn).for_each(|n| world.write(5, n, 1));
        world.primary.log.as_mut().unwrap().flush().unwrap();
        world.record();
        if turn % 2 == 0 {
            world.crash_primary();
        }
        let fills = world.fills;
        world.heal();
        assert_eq!(world.fills, fills, "turn {turn}: nothing of it breaks the chain");
    }
}

#[test]
fn what_is_noted_of_a_cut_ends_with_the_resource() {
    // Of records that cannot be read, the whole disk is told, which may be longer.
    let (mut notes, peer) = (Store::default(), node(3));
    let mut leader = Leader::new(RESOURCE, 1);
    let mut everything = RangeSet::new();
    everything.insert(ByteRange::new(0, 9 << 20));
    let (lost, cursor) = ([(peer, everything)].into(), |_| PeerCursor::default());
    let failed = leader.cut(&lost, LogPosition(8192), &[], 1 << 20, cursor, &mut notes);
    assert!(failed.is_empty(), "{failed:?}");
    let note = notes.load(peer).expect("it is noted");
    assert_eq!(note.missing, [ByteRange::new(0, 1 << 20)]);
}

#[test]
fn who_does_not_know_of_compressed_records_gets_none() {
    let mut world = World::new(7, 1, 40 << 20);
    world.old = true;
    world.write(5, 0, 4);
    world.heal();
    world.old = false;
    // Enough of them for all ways of storing; a follower of today takes them.
    (0..200).for_each(|n| world.write(5, n % 8, 4));
    world.heal();
    let packed = |world: &World| {
        let segments = world.primary.log.as_ref().unwrap().journal().durable_segments();
        segments.iter().filter(|(header, _)| header.packed).count()
    };
    assert!(packed(&world) > 0);
    let reached = status(&world.secondaries[0]).fetched;
    world.old = true;
    world.stop_secondary(0);
    world.write(5, 0, 4);
    world.start_secondary(0);
    (0..500).for_each(|_| world.step(10));
    let now = status(&world.secondaries[0]);
    assert_eq!(now.fetched, reached);
    assert!(
        matches!(&now.trouble, Some(Trouble::Refused(RefuseCode::Version, why)) if why.contains("compressed")),
        "{now:?}"
    );
    // It is updated.
    world.old = false;
    world.heal();
}

#[test]
fn what_lies_behind_the_end_of_a_disk_waits_until_that_has_grown() {
    for seed in 0..8 {
        let mut world = World::new(900 + seed, 2, 60 * 16 * 4096);
        world.hear = false;
        world.begin_small();
        (0..100).for_each(|_| world.client());
        world.heal();
        let fills = world.fills;
        world.agree_on_all();
        // One has heard of it, and goes on.
        world.hears(1);
        world.write(5, 3, 1);
        world.write(5, SIZE / 4096 - 4, 4);
        world.write(5, 7, 1);
        world.primary.log.as_mut().unwrap().flush().unwrap();
        world.record();
        run_on(&mut world, 200);
        let (waits, goes) = (status(&world.secondaries[0]), status(&world.secondaries[1]));
        assert_eq!(goes.replayed, goes.head);
        assert!(waits.fetched > waits.replayed, "it fetches on: {waits:?}");
        assert_eq!(waits.trouble, Some(Trouble::Smaller(waits.replayed)));
        assert_eq!(waits.holding, Holding::StateAt(waits.replayed), "what is before that counts");
        match seed % 4 {
            0 => world.crash_secondary(0),
            1 => world.stop_secondary(0),
            2 => world.crash_primary(),
            _ => world.wires_of(0).into_iter().for_each(|id| world.cut_wire(id)),
        }
        world.start_primary();
        world.start_secondary(0);
        run_on(&mut world, 200);
        let refused = status(&world.secondaries[0]).trouble;
        assert!(
            matches!(&refused, Some(Trouble::Refused(RefuseCode::Member, why)) if why.contains("grown")),
            "{refused:?}"
        );
        world.hears(0);
        world.heal();
        assert_eq!(world.fills, fills, "nothing is filled for it");
    }
}

#[test]
fn who_has_grown_first_is_welcome() {
    let mut world = World::new(950, 1, 60 * 16 * 4096);
    world.begin_small();
    world.secondaries[0].grow_before_all();
    world.start_secondary(0);
    world.write(5, 0, 4);
    run_on(&mut world, 400);
    world.check();
    let status = status(&world.secondaries[0]);
    assert_eq!((status.replayed, status.trouble), (status.head, None));
    world.agree_on_all();
    world.write(5, SIZE / 4096 - 4, 4);
    world.heal();
}

#[test]
fn what_the_leader_has_no_good_copy_of_arrives_as_lost_and_is_healed_when_it_has_one() {
    for seed in 0..8 {
        let mut world = World::new(1400 + seed, 1, 60 * 16 * 4096);
        (0..SIZE / 4096).for_each(|block| world.write(5, block, 1));
        world.primary.log.as_mut().unwrap().flush().unwrap();
        world.record();
        if seed % 2 == 0 {
            // It is compared, and most of it is equal.
            world.heal();
            world.secondaries[0].follower.as_mut().unwrap().discard().unwrap();
        }
        let lost: Vec<u64> = (20..23).chain([40, 95]).collect();
        lost.iter().for_each(|block| world.spoil_primary(*block..block + 1));
        world.start_secondary(0);
        if seed % 4 > 1 {
            let cut = usize::try_from(world.dice.below(40)).unwrap();
            run_on(&mut world, cut);
            world.crash_secondary(0);
            world.start_secondary(0);
        }
        run_on(&mut world, 600);
        let filled = status(&world.secondaries[0]);
        assert_eq!(filled.holding, Holding::StateAt(filled.head), "seed {seed}");
        assert_eq!(world.listed(0), lost, "seed {seed}: these, and no others");
        world.crash_secondary(0);
        world.start_secondary(0);
        // What is written is good on both, the rest when the leader has it again.
        world.write(5, 21, 1);
        world.primary.log.as_mut().unwrap().flush().unwrap();
        world.record();
        run_on(&mut world, 200);
        assert_eq!(world.listed(0), [20, 22, 40, 95], "seed {seed}");
        let fills = world.fills;
        world.heal();
        assert_eq!((world.listed(0), world.fills), (Vec::new(), fills));
    }
}

#[test]
fn who_cannot_be_told_that_something_is_lost_is_filled_when_it_is_not() {
    let mut world = World::new(1460, 1, 60 * 16 * 4096);
    world.old = true;
    (0..20).for_each(|n| world.write(2, n, 1));
    world.spoil_primary(5..7);
    world.start_secondary(0);
    run_on(&mut world, 600);
    let now = status(&world.secondaries[0]);
    assert_eq!((now.holding, world.listed(0)), (Holding::Filling, Vec::new()));
    assert!(
        matches!(&now.trouble, Some(Trouble::Refused(RefuseCode::Failed, why)) if why.contains("version")),
        "{now:?}"
    );
    world.restore_primary();
    run_on(&mut world, 600);
    assert!(matches!(status(&world.secondaries[0]).holding, Holding::StateAt(_)));
    world.heal();
}

#[test]
fn what_the_leader_lost_does_not_count_as_copied_before_that_is_noted() {
    let mut world = World::new(1450, 1, 60 * 16 * 4096);
    (0..20).for_each(|n| world.write(2, n, 1));
    world.spoil_primary(5..7);
    world.start_secondary(0);
    let sim = world.secondaries[0].sim.clone();
    sim.0.borrow_mut().now.keep_fails = true;
    run_on(&mut world, 600);
    let now = status(&world.secondaries[0]);
    assert_eq!(now.holding, Holding::Filling, "a crash could make them be taken for good");
    assert_eq!(now.healed.unkept.as_deref(), Some("it was to fail"), "and it is seen why");
    sim.0.borrow_mut().now.keep_fails = false;
    run_on(&mut world, 1000);
    let now = status(&world.secondaries[0]);
    assert!(matches!(now.holding, Holding::StateAt(_)));
    assert_eq!(now.healed.unkept, None);
    assert_eq!(world.listed(0), [5, 6]);
    world.heal();
}

#[test]
fn what_cannot_be_noted_is_not_stored_again_before_it_can() {
    let mut world = World::new(5, 1, 40 * 16 * 4096);
    world.start_secondary(0);
    (0..20).for_each(|n| world.write(2, n, 1));
    world.heal();
    let sim = world.secondaries[0].sim.clone();
    sim.0.borrow_mut().now.keep_fails = true;
    world.spoil(0, 3..6);
    world.look(0);
    run_on(&mut world, 300);
    assert_eq!(sim.0.borrow().now.bad.len(), 3, "a crash could make them be taken for good");
    sim.0.borrow_mut().now.keep_fails = false;
    run_on(&mut world, 600);
    assert!(world.all_good());
}

#[test]
fn what_is_offered_while_a_follower_is_judged_again_is_asked_for() {
    let sim = Sim::new(State::with_disk(usize::try_from(SIZE).unwrap()), false);
    let files = sim.clone();
    let open: Box<dyn FnMut() -> std::io::Result<Sim>> = Box::new(move || Ok(files.clone()));
    let settings = Settings::new(RESOURCE, node(1), 1);
    let mut follower = Follower::open(open, sim, FollowOptions::new(settings, SIZE)).unwrap();
    let (first, second, third) = (ConnId(1), ConnId(2), ConnId(3));
    let head = Head {
        durable: LogPosition::START,
        now: HybridTime::default(),
        fetch_lag_ms: 0,
        replay_lag_ms: 0,
        again: false,
        fill: 5,
        fill_left: SIZE,
        fill_to: None,
        segments: Vec::new(),
    };
    let welcome = |verdict| {
        let head = head.clone();
        Answer::Welcome(Welcome { version: VERSION, features: FEATURE_OFFER, verdict, head })
    };
    let tell = |follower: &mut Node, conn, answer| {
        assert!(follower.answer(1, conn, answer).unwrap());
        follower.work(1).unwrap();
        follower.outgoing()
    };
    follower.meet(node(0), 1);
    follower.opened(first);
    follower.work(1).unwrap();
    let (segment, from) = (1, LogPosition::START);
    tell(&mut follower, first, welcome(Verdict::Fill { fill: 5, segment, from }));
    follower.opened(second);
    let asked = tell(&mut follower, second, Answer::Joined);
    assert!(asked.iter().any(|asked| asked.request == Request::Copy { fill: 5 }), "{asked:?}");
    // A connection that the leader does not know has this node say hello again.
    follower.opened(third);
    let text = String::new();
    tell(&mut follower, third, Answer::Refuse { code: RefuseCode::Gone, text });
    let offer =
        Offer { fill: 5, range: ByteRange::new(8192, 8192), part: 4096, digests: vec![[9; 16]; 2] };
    assert!(follower.answer(1, second, Answer::Offer(offer)).unwrap());
    // The leader counts it as given out: it was asked for behind that hello.
    assert!(follower.answer(1, first, Answer::Head(head.clone())).unwrap());
    let asked = tell(&mut follower, first, welcome(Verdict::FillOn));
    let take = Request::Take { fill: 5, range: ByteRange::new(8192, 8192) };
    assert!(asked.iter().any(|asked| asked.request == take), "{asked:?}");
}
