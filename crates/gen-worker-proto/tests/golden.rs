//! What the Python worker and its schedulers put on the wire, byte for byte, in both directions.

use gen_worker_proto::scheduler::worker_scheduler_message::Msg;
use gen_worker_proto::scheduler::{
    DeploymentModelConfig, FunctionSchema, InterruptTaskCommand, LoadModelCommand, LoadModelResult,
    RealtimeCloseCommand, RealtimeFrame, RealtimeOpenCommand, SpawnTasksRequest, TaskExecutionRequest,
    TaskExecutionResult, UnloadModelCommand, UnloadModelResult, WorkerEvent, WorkerRegistration,
    WorkerResources, WorkerSchedulerMessage,
};
use prost::Message;

#[track_caller]
fn check(msg: Msg, golden: &str) {
    let message = WorkerSchedulerMessage { msg: Some(msg) };
    assert_eq!(hex::encode(message.encode_to_vec()), golden);
    let bytes = hex::decode(golden).unwrap();
    assert_eq!(WorkerSchedulerMessage::decode(bytes.as_slice()).unwrap(), message);
}

fn s(text: &str) -> String {
    text.to_owned()
}

#[test]
fn registration_with_every_field() {
    let schema = FunctionSchema {
        name: s("f"),
        input_schema_json: "{}".into(),
        output_schema_json: "{}".into(),
        injection_json: "[]".into(),
        incremental_output: true,
        delta_schema_json: "{}".into(),
    };
    let resources = WorkerResources {
        worker_id: s("w"),
        cpu_cores: 2,
        memory_bytes: 3,
        gpu_count: 1,
        gpu_memory_bytes: 5,
        available_functions: vec![s("f"), s("g")],
        vram_models: vec![s("m1")],
        supports_model_loading: true,
        deployment_id: s("d"),
        runpod_pod_id: s("p"),
        gpu_is_busy: true,
        gpu_memory_used_bytes: 12,
        gpu_name: s("n"),
        gpu_driver: s("r"),
        gpu_memory_free_bytes: 15,
        max_concurrency: 4,
        function_concurrency: [(s("f"), 2)].into(),
        cuda_version: s("12.4"),
        torch_version: s("2.6"),
        function_schemas: vec![schema],
        gpu_sm: s("90"),
        tensorrt_version: s("10.0"),
        onnxruntime_version: s("1.18"),
        disk_models: vec![s("m2")],
        ..Default::default()
    };
    let registration =
        WorkerRegistration { resources: Some(resources), is_heartbeat: true, active_runs: vec![] };
    check(
        Msg::WorkerRegistration(registration),
        "0a750a710a017710021803200128053201663201673a026d3140014a01645201705801600c6a016e720172780f8001048a01050a016610\
         0292010431322e349a0103322e36a201150a016612027b7d1a027b7d22025b5d280132027b7daa01023930b2010431302e30ba0104312e\
         3138c201026d321001",
    );
}

#[test]
fn results() {
    let ok = TaskExecutionResult {
        run_id: s("r"),
        success: true,
        output_payload: vec![0x81, 0xa1, 0x79, 0x02].into(),
        ..Default::default()
    };
    check(Msg::RunResult(ok), "120b0a017210011a0481a17902");
    let error = TaskExecutionResult {
        run_id: s("r"),
        error_message: s("E: x"),
        error_type: s("retryable"),
        retryable: true,
        safe_message: s("x"),
        ..Default::default()
    };
    check(Msg::RunResult(error), "12190a01722204453a20782a09726574727961626c6530013a0178");
}

#[test]
fn worker_event() {
    let event = WorkerEvent {
        run_id: s("r"),
        event_type: s("job.progress"),
        payload_json: r#"{"progress": 0.5}"#.into(),
    };
    check(
        Msg::WorkerEvent(event),
        "32240a0172120c6a6f622e70726f67726573731a117b2270726f6772657373223a20302e357d",
    );
}

#[test]
fn spawn_tasks() {
    let child = TaskExecutionRequest { run_id: s("c"), ..Default::default() };
    let spawn = SpawnTasksRequest { parent_run_id: s("r"), child_tasks: vec![child] };
    check(Msg::SpawnTasks(spawn), "1a080a017212030a0163");
}

#[test]
fn run_request() {
    let request = TaskExecutionRequest {
        run_id: s("r"),
        function_name: s("f"),
        input_payload: vec![0x81, 0xa1, 0x78, 0x01].into(),
        required_models: vec![s("m")],
        timeout_ms: 1000,
        tenant_id: s("t"),
        user_id: s("u"),
        file_base_url: s("http://h"),
        file_token: s("k"),
        ..Default::default()
    };
    check(
        Msg::RunRequest(request),
        "52250a01721201661a0481a1780122016d28e8073201743a01754208687474703a2f2f684a016b",
    );
}

#[test]
fn model_commands_and_results() {
    check(Msg::LoadModelCmd(LoadModelCommand { model_id: s("m") }), "5a030a016d");
    check(Msg::UnloadModelCmd(UnloadModelCommand { model_id: s("m") }), "62030a016d");
    let loaded = LoadModelResult { model_id: s("m"), success: true, error_message: s("") };
    check(Msg::LoadModelResult(loaded), "22050a016d1001");
    let unloaded = UnloadModelResult { model_id: s("m"), success: false, error_message: s("e") };
    check(Msg::UnloadModelResult(unloaded), "2a060a016d1a0165");
}

#[test]
fn interrupt_run_cmd() {
    check(Msg::InterruptRunCmd(InterruptTaskCommand { run_id: s("r"), attempt: 0 }), "6a030a0172");
}

#[test]
fn deployment_model_config() {
    let config = DeploymentModelConfig {
        supported_model_ids: vec![s("m")],
        model_id_by_key: [(s("k"), s("m"))].into(),
    };
    check(Msg::DeploymentModelConfig(config), "720b0a016d12060a016b12016d");
}

#[test]
fn realtime() {
    let open = RealtimeOpenCommand {
        session_id: s("s"),
        function_name: s("f"),
        required_models: vec![s("m")],
        tenant_id: s("t"),
        user_id: s("u"),
        timeout_ms: 1,
        file_base_url: s("b"),
        file_token: s("k"),
        ..Default::default()
    };
    check(Msg::RealtimeOpenCmd(open), "7a170a01731201661a016d2201742a017530013a016242016b");
    let frame = RealtimeFrame { session_id: s("s"), data: "ab".into(), is_text: true };
    check(Msg::RealtimeFrame(frame), "8201090a0173120261621801");
    let close = RealtimeCloseCommand { session_id: s("s"), reason: s("closed") };
    check(Msg::RealtimeCloseCmd(close), "8a010b0a01731206636c6f736564");
}
