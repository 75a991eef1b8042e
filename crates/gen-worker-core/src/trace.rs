//! W3C Trace Context: which trace a run belongs to, as it travels in headers.

/// Longest `tracestate` that is passed on, in bytes: what the recommendation asks everyone to keep.
const MAX_STATE: usize = 512;

/// Bytes of a `traceparent` of version 00.
const PARENT: usize = 55;

/// A place in a trace, to be handed to whoever works on behalf of it. Checked, so that it may be sent as it is.
///
/// ```
/// use gen_worker_core::TraceContext;
///
/// let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// let trace = TraceContext::parse(parent, "vendor=1").unwrap();
/// assert_eq!((trace.parent(), trace.state()), (parent, Some("vendor=1")));
/// assert!(TraceContext::parse("00-0-0-01", "").is_none());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    parent: String,
    state: Option<String>,
}

impl TraceContext {
    /// From the values of `traceparent` and `tracestate`; the latter may be empty. `None`: the first is none. A state that cannot
    /// be passed on is left out.
    pub fn parse(parent: &str, state: &str) -> Option<Self> {
        // A later version begins with the fields of this one, and may go on behind them.
        let (known, rest) = parent.split_at_checked(PARENT)?;
        let fields: Vec<&str> = known.split('-').collect();
        let [version, trace_id, span_id, flags] = fields[..] else { return None };
        let is_known = match version {
            "00" => rest.is_empty(),
            version => is_hex(version, 2) && version != "ff" && (rest.is_empty() || rest.starts_with('-')),
        };
        let is_id = |text: &str, digits| is_hex(text, digits) && text.bytes().any(|digit| digit != b'0');
        let is_one = is_known && is_id(trace_id, 32) && is_id(span_id, 16) && is_hex(flags, 2);
        is_one.then(|| Self { parent: format!("00-{trace_id}-{span_id}-{flags}"), state: state_of(state) })
    }

    /// The value of `traceparent`.
    pub fn parent(&self) -> &str {
        &self.parent
    }

    /// The value of `tracestate`; `None`: there is none.
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// The trace's id, 32 hexadecimal digits.
    pub fn trace_id(&self) -> &str {
        &self.parent[3..35]
    }

    /// The id of the span whose children are made, 16 hexadecimal digits.
    pub fn span_id(&self) -> &str {
        &self.parent[36..52]
    }

    /// Whether the trace is recorded by whoever sent it.
    pub fn is_sampled(&self) -> bool {
        u8::from_str_radix(&self.parent[53..], 16).is_ok_and(|flags| flags & 1 == 1)
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

fn state_of(text: &str) -> Option<String> {
    let text = text.trim();
    let fits = !text.is_empty() && text.len() <= MAX_STATE && text.bytes().all(|c| matches!(c, b' '..=b'~'));
    fits.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_is_no_context_is_left_alone() {
        for parent in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333\n-01",
            "00-0af7651916cd43dd8448eb211c80319é-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceContext::parse(parent, ""), None, "{parent}");
        }
    }

    #[test]
    fn a_later_version_is_passed_on_as_the_one_that_is_known() {
        let later = format!("cc{}-what-comes", &PARENT[2..]);
        let trace = TraceContext::parse(&later, "").unwrap();
        assert_eq!(trace.parent(), PARENT);
        assert_eq!(
            (trace.trace_id(), trace.span_id()),
            ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
        );
        assert!(trace.is_sampled());
        assert!(!TraceContext::parse(&PARENT.replace("-01", "-02"), "").unwrap().is_sampled());
    }

    #[test]
    fn a_state_that_no_header_can_hold_is_left_out() {
        let state = |text: &str| TraceContext::parse(PARENT, text).unwrap().state;
        assert_eq!(state(" a=1,b=2 ").as_deref(), Some("a=1,b=2"));
        for text in ["", " ", "a=\r\nX: y", &"x".repeat(MAX_STATE + 1)] {
            assert_eq!(state(text), None, "{text}");
        }
    }
}
