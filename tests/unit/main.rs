//! The rooms of the library, each by itself: models, vectors, failing disks, and the style of the
//! source.

mod allocations;
mod dead_kill;
mod delivery_sim;
mod documents;
mod imports;
mod judge_model;
mod naive;
mod path_model;
mod portals_file;
mod portals_rules;
mod portals_url;
mod portals_wait;
mod spool_calls;
mod spool_disk;
mod spool_faults;
mod spool_kill;
mod spool_lanes;
mod spool_loom;
mod spool_model;
mod spool_order;
mod spool_portals;
mod spool_power;
mod spool_recovery;
mod spool_routes;
mod spool_sim;
mod spool_start;
mod tidy;
mod vectors;

#[path = "../support/cases.rs"]
mod cases;
#[path = "../support/counting.rs"]
mod counting;

// It counts each thread by itself, so that tests on other threads do not change a count.
#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;
