//! The spool against a naive model: any sequence of appends, commits, reads, acknowledgements,
//! faults, kills, power losses, restarts and adoptions, on a file system that misbehaves.
//!
//! What must hold: what is read was written (no inventions), in order, once per process; what was
//! answered comes back after whatever the durability promises to survive; what was refused does
//! not, unless a crash came in between; an upstream gets what is meant for it and nothing else,
//! although the routes change while events wait; and the counts always add up.

mod world;

pub use self::world::wait;

use self::world::World;
use crate::spool_sim::Op;
use pixelgate::internals::spool::Durability;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Action {
    /// Appends this many events without waiting.
    Append(u8),
    /// Further events are meant for all upstreams (0), or for one or none of the two.
    Route(u8),
    /// Waits for the answers of all appended events.
    Settle,
    /// An upstream reads up to this many events.
    Read(bool, u8),
    /// An upstream acknowledges every nth event that it has read, from some event on.
    Acknowledge(bool, u8, u8),
    /// Does what maintenance does each second.
    Checkpoint,
    /// A call begins to fail.
    Fault(Op, u8, u8, u8),
    Fill(bool),
    /// No call fails any more.
    Heal,
    /// The process is killed and starts again.
    Kill,
    /// The power goes, the machine starts again.
    LosePower,
    /// A graceful restart.
    Restart,
    /// A new process starts beside the old one, which then ends, gracefully or not.
    Upgrade(bool),
}

fn action() -> impl Strategy<Value = Action> {
    let op = prop_oneof![Just(Op::Write), Just(Op::Sync), Just(Op::Names), Just(Op::Read)];
    prop_oneof![
        8 => (1..20u8).prop_map(Action::Append),
        2 => (0..4u8).prop_map(Action::Route),
        6 => Just(Action::Settle),
        6 => (any::<bool>(), 1..40u8).prop_map(|(u, n)| Action::Read(u, n)),
        6 => (any::<bool>(), any::<u8>(), 1..4u8)
            .prop_map(|(u, n, k)| Action::Acknowledge(u, n, k)),
        3 => Just(Action::Checkpoint),
        3 => (op, 0..4u8, 1..4u8, any::<u8>()).prop_map(|(o, a, t, p)| Action::Fault(o, a, t, p)),
        1 => any::<bool>().prop_map(Action::Fill),
        3 => Just(Action::Heal),
        2 => Just(Action::Kill),
        2 => Just(Action::LosePower),
        1 => Just(Action::Restart),
        2 => any::<bool>().prop_map(Action::Upgrade),
    ]
}

fn act(world: &mut World, action: &Action) {
    match *action {
        Action::Append(events) => (0..events).for_each(|_| world.append()),
        Action::Route(route) => world.route = route,
        Action::Settle => world.settle(),
        Action::Read(far, events) => _ = world.read(usize::from(far), usize::from(events)),
        Action::Acknowledge(far, from, step) => {
            world.acknowledge(usize::from(far), usize::from(from), usize::from(step));
        }
        Action::Checkpoint => world.checkpoint(),
        Action::Fault(op, after, times, part) => {
            world.fail(op, u32::from(after), u32::from(times), part);
        }
        Action::Fill(full) => world.fill(full),
        Action::Heal => world.heal(),
        Action::Kill => world.kill(),
        Action::LosePower => world.lose_power(),
        Action::Restart => world.restart(),
        Action::Upgrade(graceful) => world.upgrade(graceful),
    }
    world.identity_holds();
}

fn check(durability: Durability, seed: u64, actions: &[Action]) {
    let mut world = World::new(durability, seed);
    for action in actions {
        act(&mut world, action);
    }
    world.drain();
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    prop::collection::vec(action(), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn power_keeps_what_it_answered(seed: u64, actions in actions()) {
        check(Durability::Power, seed, &actions);
    }

    #[test]
    fn interval_keeps_what_it_answered(seed: u64, actions in actions()) {
        check(Durability::Interval, seed, &actions);
    }

    #[test]
    fn memory_keeps_what_it_answered(seed: u64, actions in actions()) {
        check(Durability::Memory, seed, &actions);
    }
}

/// Records that were answered with an error are in the file until the kernel drops their pages.
#[test]
fn records_that_were_refused_may_be_lost_after_a_kill() {
    use self::Action::*;
    let actions = [
        Fault(Op::Sync, 0, 1, 123),
        Fault(Op::Sync, 2, 2, 116),
        Append(16),
        Append(17),
        Fault(Op::Names, 0, 2, 112),
        Settle,
        Kill,
        Fault(Op::Names, 1, 2, 248),
        Checkpoint,
        Upgrade(false),
        Fault(Op::Names, 2, 2, 75),
        Append(5),
        Upgrade(true),
        Read(true, 24),
    ];
    check(Durability::Power, 1_225_892_491_395_507_110, &actions);
}

/// The name of a segment is found after a kill, although its folder could not be synced. A later
/// process must not prove with its cursor a name that a power loss then takes.
#[test]
fn a_segment_whose_name_was_not_durable_is_lost_and_not_missing() {
    use self::Action::*;
    let actions = [
        Append(15),
        Settle,
        Checkpoint,
        Fault(Op::Names, 3, 3, 196),
        Fault(Op::Sync, 2, 3, 160),
        Append(12),
        Append(16),
        Settle,
        Upgrade(false),
        LosePower,
    ];
    (0..20).for_each(|seed| check(Durability::Interval, seed, &actions));
}
