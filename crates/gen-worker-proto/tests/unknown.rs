//! Peers of different ages: what one does not know must never end a stream.

use gen_worker_proto::scheduler::worker_scheduler_message::Msg;
use gen_worker_proto::scheduler::{
    ActiveRun, DrainCommand, InterruptTaskCommand, RealtimeOpenCommand, ResultAck, RunAccepted,
    SchedulerHello, TaskExecutionRequest, TaskExecutionResult, TokenRefresh, WorkerRegistration,
    WorkerResources, WorkerSchedulerMessage,
};
use prost::Message;

fn decode(bytes: &[u8]) -> Option<Msg> {
    WorkerSchedulerMessage::decode(bytes).expect("an unknown message is no error").msg
}

#[test]
fn unknown_member_of_the_envelope_decodes_to_none() {
    // Field 18, length-delimited, four bytes.
    assert_eq!(decode(&[0x92, 0x01, 0x04, 1, 2, 3, 4]), None);
    assert_eq!(decode(&[]), None);
}

#[test]
fn a_known_member_beside_an_unknown_one_is_kept() {
    let interrupt = Msg::InterruptRunCmd(InterruptTaskCommand { run_id: "r".to_owned(), attempt: 0 });
    let mut bytes = WorkerSchedulerMessage { msg: Some(interrupt.clone()) }.encode_to_vec();
    bytes.extend([0x92, 0x01, 0x04, 1, 2, 3, 4]);
    assert_eq!(decode(&bytes), Some(interrupt));
}

#[test]
fn unknown_fields_of_every_wire_type_are_skipped() {
    let request = TaskExecutionRequest { run_id: "r".to_owned(), ..Default::default() };
    let mut bytes = request.encode_to_vec();
    bytes.extend([0xe8, 0x07, 0x05]); // 125, varint
    bytes.extend([0xe9, 0x07, 1, 2, 3, 4, 5, 6, 7, 8]); // 125, 64 bits
    bytes.extend([0xea, 0x07, 0x02, 9, 9]); // 125, length-delimited
    bytes.extend([0xed, 0x07, 1, 2, 3, 4]); // 125, 32 bits
    assert_eq!(TaskExecutionRequest::decode(bytes.as_slice()).unwrap(), request);
}

/// A scheduler without extensions sees the fields it knows and a number it does not.
#[test]
fn extensions_have_the_numbers_of_the_contract() {
    #[track_caller]
    fn check(message: impl Message, hex: &str) {
        assert_eq!(hex::encode(message.encode_to_vec()), hex);
    }
    fn s(text: &str) -> String {
        text.to_owned()
    }
    let envelope = |msg| WorkerSchedulerMessage { msg: Some(msg) };

    let hello = SchedulerHello { features: vec![s("f")], scheduler_id: s("i") };
    check(envelope(Msg::SchedulerHello(hello)), "c20c060a0166120169");
    check(envelope(Msg::ResultAck(ResultAck { run_id: s("r"), attempt: 2 })), "ca0c050a01721002");
    check(envelope(Msg::DrainCmd(DrainCommand { deadline_ms: 1, reason: s("w") })), "d20c050801120177");
    let refresh = TokenRefresh { token: s("t"), expires_at_unix_ms: 1 };
    check(envelope(Msg::TokenRefresh(refresh)), "da0c050a01741001");
    check(envelope(Msg::RunAccepted(RunAccepted { run_id: s("r"), attempt: 2 })), "920d050a01721002");

    let loading =
        WorkerResources { features: vec![s("f")], loading_functions: vec![s("g")], ..Default::default() };
    check(loading, "c20c0166ca0c0167");
    let run = ActiveRun { run_id: s("r"), attempt: 2 };
    check(WorkerRegistration { active_runs: vec![run], ..Default::default() }, "c20c050a01721002");
    check(TaskExecutionRequest { attempt: 1, ..Default::default() }, "7801");
    check(TaskExecutionRequest { traceparent: "a".into(), ..Default::default() }, "c20c0161");
    check(TaskExecutionRequest { tracestate: "a".into(), ..Default::default() }, "ca0c0161");
    check(RealtimeOpenCommand { traceparent: "a".into(), ..Default::default() }, "c20c0161");
    check(RealtimeOpenCommand { tracestate: "a".into(), ..Default::default() }, "ca0c0161");
    check(TaskExecutionResult { attempt: 1, ..Default::default() }, "6001");
    check(InterruptTaskCommand { attempt: 1, ..Default::default() }, "2001");
}
