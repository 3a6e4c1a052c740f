//! Keeps the process's memory in small pages.

/// Has the system give this process no huge pages. The allocator asks for them where the system
/// leaves that to the program, and gets them where the system always gives them. One that holds a
/// single live allocation takes 2 MiB, so thousands of connections, each with a few buffers, would
/// take more than twice the memory. Call this first: what is in a huge page already stays there.
pub fn decline() {
    // An error means that the kernel knows no huge pages.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}
