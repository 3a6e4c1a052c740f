//! Looks up the names of the servers to which connections are opened, and detects changed
//! addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// The names that were looked up, with their addresses. A clone is another handle to the same
/// table.
#[derive(Clone, Default)]
pub struct Names(Arc<Mutex<BTreeMap<String, BTreeSet<IpAddr>>>>);

impl Names {
    /// Whether a name that was looked up before has other addresses now. A name that cannot be
    /// looked up counts as unchanged.
    pub async fn have_changed(&self) -> bool {
        let known = self.0.lock().clone();
        for (name, before) in known {
            let now = look_up(name).await;
            if now.is_ok_and(|now| addresses(&now) != before) {
                return true;
            }
        }
        false
    }
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let (this, name) = (self.clone(), name.as_str().to_owned());
        Box::pin(async move {
            let found = look_up(name.clone()).await?;
            this.0.lock().insert(name, addresses(&found));
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

fn addresses(found: &[SocketAddr]) -> BTreeSet<IpAddr> {
    found.iter().map(SocketAddr::ip).collect()
}

/// Looks up a name on a blocking thread, because the name server may not answer.
async fn look_up(name: String) -> io::Result<Vec<SocketAddr>> {
    // The port is 0, because the connector sets it.
    let look = move || (name.as_str(), 0).to_socket_addrs().map(Iterator::collect);
    tokio::task::spawn_blocking(look).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn another_address_is_a_change_and_no_answer_is_none() {
        let names = Names::default();
        let found = names.resolve("localhost".parse().unwrap()).await.unwrap();
        assert!(found.count() > 0);
        assert!(!names.have_changed().await);
        names.0.lock().insert("no-such-name.invalid".to_owned(), BTreeSet::new());
        assert!(!names.have_changed().await);
        let other = BTreeSet::from(["192.0.2.1".parse().unwrap()]);
        names.0.lock().insert("localhost".to_owned(), other);
        assert!(names.have_changed().await);
    }
}
