//! A server on loopback, for this crate's tests.

use std::{net::SocketAddr, time::Duration};

use axum::Router;
use tokio::{net::TcpListener, task::JoinSet};
use url::Url;

use crate::{AllowList, HttpClient, NetConfig};

/// Serves until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(crate) async fn start(router: Router) -> Self {
        Self::start_at("127.0.0.1:0", router).await
    }

    pub(crate) async fn start_at(address: &str, router: Router) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, _tasks: tasks }
    }

    pub(crate) fn url(&self, path: &str) -> Url {
        format!("http://{}{path}", self.address).parse().unwrap()
    }
}

pub(crate) fn client(allow: &[&str]) -> HttpClient {
    HttpClient::new(NetConfig {
        connect_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_millis(300),
        min_rate: 0,
        attempts: 3,
        url_allow: AllowList::parse(allow).unwrap(),
    })
    .unwrap()
}
