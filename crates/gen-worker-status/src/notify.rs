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
#[derive(Debug, Clone, Default)]
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
            let (message, then) = told.next(&worker.condition(), self.watchdog.is_some());
            match message.map(|message| self.socket.send(message.as_bytes())) {
                // It is due again at the next look.
                Some(Err(error)) => debug!(%error, "the service manager was not told"),
                Some(Ok(_)) | None => told = then,
            }
        }
    }
}

impl Told {
    /// What is to be told now, and what will have been told once it was sent. `None`: nothing is.
    fn next(&self, condition: &Condition, watched: bool) -> (Option<String>, Self) {
        let (mut lines, mut then) = (Vec::new(), self.clone());
        if judge(Probe::Started, condition).ok && !std::mem::replace(&mut then.has_started, true) {
            lines.push("READY=1".to_owned());
        }
        if condition.is_leaving && !std::mem::replace(&mut then.is_leaving, true) {
            lines.push("STOPPING=1".to_owned());
        }
        if watched && judge(Probe::Live, condition).ok {
            lines.push("WATCHDOG=1".to_owned());
        }
        let why = judge(Probe::Ready, condition).why;
        let status = if why.is_empty() { "ready".to_owned() } else { why.join("; ") };
        if status != self.status {
            lines.push(format!("STATUS={status}"));
            then.status = status;
        }
        ((!lines.is_empty()).then(|| lines.join("\n")), then)
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
    use gen_worker_core::{metric::Readings, ports::Measured};

    use super::*;

    struct Well;

    impl Vitals for Well {
        fn condition(&self) -> Condition {
            Condition {
                turned_ago: Duration::ZERO,
                was_connected: true,
                is_connected: true,
                is_leaving: false,
                closed: None,
                available: 1,
                loading: Vec::new(),
            }
        }
    }

    impl Measured for Well {
        fn measure(&self, _readings: &mut Readings) {}
    }

    /// The next message, once the socket has one.
    fn heard(manager: &UnixDatagram) -> String {
        let mut message = [0; 4096];
        let length = manager.recv(&mut message).expect("there is one");
        String::from_utf8_lossy(&message[..length]).into_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_sent_is_told_later() {
        let directory = tempfile::tempdir().unwrap();
        let address = directory.path().join("notify");
        let manager = UnixDatagram::bind(&address).unwrap();
        let notify = Notify::connect(address.to_str().unwrap(), None).unwrap();
        let mut fillers = 0;
        while notify.socket.send(b"full").is_ok() {
            fillers += 1;
        }
        let worker = Well;
        let tells = notify.tell(&worker);
        tokio::pin!(tells);
        let looks = async |times: u32| tokio::time::sleep(LOOK * times).await;
        tokio::select! {
            () = &mut tells => {}
            () = looks(3) => {}
        }
        (0..fillers).for_each(|_| assert_eq!(heard(&manager), "full"));
        tokio::select! {
            () = &mut tells => {}
            () = looks(3) => {}
        }
        manager.set_nonblocking(true).unwrap();
        assert_eq!(heard(&manager), "READY=1\nSTATUS=ready");
        assert!(manager.recv(&mut [0; 8]).is_err(), "it is told once");
    }

    #[test]
    fn each_change_is_told_once_and_life_as_long_as_the_loop_turns() {
        let mut told = Told::default();
        let mut next = |condition: &Condition, watched| {
            let (message, then) = told.next(condition, watched);
            told = then;
            message
        };
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
        assert_eq!(next(&condition, false).as_deref(), Some(away));
        assert_eq!(next(&condition, false), None);
        assert_eq!(next(&condition, true).as_deref(), Some("WATCHDOG=1"));
        (condition.was_connected, condition.is_connected) = (true, true);
        assert_eq!(next(&condition, true).as_deref(), Some("READY=1\nWATCHDOG=1\nSTATUS=ready"));
        assert_eq!(next(&condition, false), None);
        condition.is_connected = false;
        assert_eq!(next(&condition, false).as_deref(), Some(away));
        (condition.is_leaving, condition.is_connected, condition.closed) = (true, true, Some("draining"));
        assert_eq!(next(&condition, false).as_deref(), Some("STOPPING=1\nSTATUS=draining"));
        condition.turned_ago = Duration::from_secs(6);
        let hangs = next(&condition, true);
        assert_eq!(hangs.as_deref(), Some("STATUS=the control loop last turned 6.0 s ago; draining"));
    }
}
