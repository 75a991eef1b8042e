//! What systemd is told of a service of `Type=notify`: datagrams to the socket that it names.

use std::{io, os::unix::net::UnixDatagram, time::Duration};

use gen_worker_core::ports::{Condition, Vitals};
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::health::{Probe, judge};

/// How often it is looked whether there is something new to tell, where no watchdog wants it more often.
const LOOK: Duration = Duration::from_secs(1);

/// The socket of the service manager.
#[derive(Debug)]
pub(crate) struct Notify {
    socket: UnixDatagram,
    /// A sign of life is due so often; `None`: none is.
    watchdog: Option<Duration>,
}

/// What was told so far.
#[derive(Debug, Default)]
struct Told {
    has_started: bool,
    is_leaving: bool,
    status: String,
}

impl Notify {
    /// The manager at this address; `watchdog` is how long it waits for a sign of life, and gets two in that time.
    pub(crate) fn connect(address: &str, watchdog: Option<Duration>) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        connect(&socket, address)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, watchdog: watchdog.map(|patience| patience / 2) })
    }

    /// Tells for as long as it is polled.
    pub(crate) async fn tell(&self, worker: &dyn Vitals) {
        let mut told = Told::default();
        let mut due = interval(self.watchdog.map_or(LOOK, |every| every.min(LOOK)));
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            if let Some(message) = told.next(&worker.condition(), self.watchdog.is_some())
                && let Err(error) = self.socket.send(message.as_bytes())
            {
                debug!(%error, "the service manager was not told");
            }
        }
    }
}

impl Told {
    /// What is to be told now; `None`: nothing.
    fn next(&mut self, condition: &Condition, watched: bool) -> Option<String> {
        let mut lines = Vec::new();
        if judge(Probe::Started, condition).ok && !std::mem::replace(&mut self.has_started, true) {
            lines.push("READY=1".to_owned());
        }
        if condition.is_leaving && !std::mem::replace(&mut self.is_leaving, true) {
            lines.push("STOPPING=1".to_owned());
        }
        if watched && judge(Probe::Live, condition).ok {
            lines.push("WATCHDOG=1".to_owned());
        }
        let why = judge(Probe::Ready, condition).why;
        let status = if why.is_empty() { "ready".to_owned() } else { why.join("; ") };
        if status != self.status {
            lines.push(format!("STATUS={status}"));
            self.status = status;
        }
        (!lines.is_empty()).then(|| lines.join("\n"))
    }
}

#[cfg(target_os = "linux")]
fn connect(socket: &UnixDatagram, address: &str) -> io::Result<()> {
    use std::os::{linux::net::SocketAddrExt, unix::net::SocketAddr};
    match address.strip_prefix('@') {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?),
        None => socket.connect(address),
    }
}

#[cfg(not(target_os = "linux"))]
fn connect(socket: &UnixDatagram, address: &str) -> io::Result<()> {
    socket.connect(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_told_once_and_life_as_long_as_the_loop_turns() {
        let mut told = Told::default();
        let mut condition = Condition {
            turned_ago: Duration::ZERO,
            was_connected: false,
            is_connected: false,
            is_leaving: false,
            closed: None,
            available: 1,
            loading: Vec::new(),
        };
        let away = "STATUS=not connected to a scheduler";
        assert_eq!(told.next(&condition, false).as_deref(), Some(away));
        assert_eq!(told.next(&condition, false), None);
        assert_eq!(told.next(&condition, true).as_deref(), Some("WATCHDOG=1"));
        (condition.was_connected, condition.is_connected) = (true, true);
        assert_eq!(told.next(&condition, true).as_deref(), Some("READY=1\nWATCHDOG=1\nSTATUS=ready"));
        assert_eq!(told.next(&condition, false), None);
        condition.is_connected = false;
        assert_eq!(told.next(&condition, false).as_deref(), Some(away));
        (condition.is_leaving, condition.is_connected, condition.closed) = (true, true, Some("draining"));
        assert_eq!(told.next(&condition, false).as_deref(), Some("STOPPING=1\nSTATUS=draining"));
        condition.turned_ago = Duration::from_secs(6);
        let hangs = told.next(&condition, true);
        assert_eq!(hangs.as_deref(), Some("STATUS=the control loop last turned 6.0 s ago; draining"));
    }
}
