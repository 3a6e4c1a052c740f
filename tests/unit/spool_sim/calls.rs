//! Every call to the file system in memory, counted: any one of them can be made to fail, to stall,
//! or to be the last one of its process.

use std::io;

use super::SimFs;

/// The calls, as they are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Read,
    Write,
    Sync,
    SetLen,
    Size,
    Lock,
    List,
    Open,
    MakeDir,
    Rename,
    Remove,
    SyncDir,
    FindId,
    FreeBytes,
}

/// What happens at one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trap {
    /// It fails with this error and does nothing.
    Errno(i32),
    /// It reads or writes half of its bytes.
    Short,
    /// It does not return before [`SimFs::thaw`].
    Stall,
    /// The process is killed before it.
    Kill,
    /// The power goes before it.
    PowerLoss,
    /// The power goes while it writes: any part of its sectors is on the platters. Before any other
    /// call, as [`Trap::PowerLoss`].
    TornWrite,
}

/// How much of a call is done.
pub enum Outcome {
    Whole,
    Short,
    /// The power goes in the middle of the call.
    Torn,
}

/// The number of calls so far, and the call at which the trap springs.
#[derive(Debug, Default)]
pub struct Calls {
    pub count: u64,
    trap: Option<(u64, Trap)>,
    /// The call that the trap met.
    pub met: Option<Call>,
    pub frozen: bool,
}

impl SimFs {
    /// Counts from zero, and sets a trap at the call with this number, from 1.
    pub fn trap(&self, at: u64, trap: Trap) {
        let mut disk = self.locked();
        disk.calls = Calls { trap: Some((at, trap)), ..Calls::default() };
    }

    /// The call that the trap met; `None` if there were not so many.
    pub fn met(&self) -> Option<Call> {
        self.locked().calls.met
    }

    /// The number of calls since the trap was set.
    pub fn calls(&self) -> u64 {
        self.locked().calls.count
    }

    /// From now on no call returns before [`SimFs::thaw`].
    pub fn freeze(&self) {
        self.locked().calls.frozen = true;
    }

    /// Stalled calls go on, and no further trap is set.
    pub fn thaw(&self) {
        let mut disk = self.locked();
        disk.calls.frozen = false;
        disk.calls.trap = None;
    }

    pub(super) fn call(&self, call: Call) -> io::Result<Outcome> {
        let trap = {
            let mut disk = self.alive()?;
            disk.calls.count += 1;
            let count = disk.calls.count;
            let trap = disk.calls.trap.take_if(|(at, _)| *at == count);
            if trap.is_some() {
                disk.calls.met = Some(call);
            }
            trap.map(|(_, trap)| trap)
        };
        match trap {
            None => {}
            Some(Trap::Errno(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Some(Trap::Short) => return Ok(Outcome::Short),
            Some(Trap::Stall) => self.freeze(),
            Some(Trap::Kill) => self.kill(&self.clone()),
            Some(Trap::TornWrite) if call == Call::Write => return Ok(Outcome::Torn),
            Some(Trap::PowerLoss | Trap::TornWrite) => self.lose_power(),
        }
        while self.alive()?.calls.frozen {
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        Ok(Outcome::Whole)
    }
}
