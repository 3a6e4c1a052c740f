//! Keeps the memory of the process in small pages.
/// Asks the system to give this process no huge pages.
///
/// A huge page takes 2 MiB even if it holds a single allocation, so thousands of connections, each
/// with a few buffers, would take more than twice the memory. Must be called first, because memory
/// that is in a huge page stays there.
pub fn decline() {
    // An error means that the kernel has no huge pages.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}
