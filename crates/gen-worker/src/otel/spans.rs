//! Runs and their stages as spans of the SDK.

use std::time::{Duration, SystemTime};

use gen_worker_core::{
    RunFacts, TraceContext, WorkerId,
    ports::{RunSpan, Tracer},
};
use gen_worker_net::HttpClient;
use opentelemetry::{
    Context, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{SpanContext, SpanKind, Status, TraceContextExt, TraceState, Tracer as _, TracerProvider},
};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};
use url::Url;

use super::{carrier::Carrier, config::OtelConfig};

/// Traces cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("traces cannot be sent: see the OTEL_ variables")]
pub struct OtelError(#[from] ExporterBuildError);

/// Makes spans of runs.
pub(crate) struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    timeout: Duration,
}

impl Traces {
    /// Connects to nothing.
    ///
    /// # Errors
    /// The settings name no address that can be used, or the system gives no thread.
    pub(crate) fn open(
        endpoint: &Url,
        config: &OtelConfig,
        worker_id: &WorkerId,
        client: HttpClient,
    ) -> Result<Self, OtelError> {
        let carrier = Carrier::start(client, config.timeout)
            .map_err(|e| ExporterBuildError::InternalFailure(e.to_string()))?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(carrier)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint.as_str())
            .with_headers(config.headers())
            .with_timeout(config.timeout)
            .build()?;
        // What OTEL_RESOURCE_ATTRIBUTES says goes below what is known.
        let resource = Resource::builder()
            .with_service_name(config.service_name.clone())
            .with_attributes([
                KeyValue::new("service.instance.id", worker_id.to_string()),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            ])
            .build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        // For the spans of user code, which it makes below `ActionContext::trace`.
        opentelemetry::global::set_tracer_provider(provider.clone());
        Ok(Self { tracer: provider.tracer("gen-worker"), provider, timeout: config.timeout })
    }
}

impl Tracer for Traces {
    fn begin(&self, run: &RunFacts) -> Box<dyn RunSpan> {
        let parent = run
            .scope
            .trace
            .as_ref()
            .map_or_else(Context::new, |trace| Context::new().with_remote_span_context(remote(trace)));
        let span = self
            .tracer
            .span_builder(run.function.to_string())
            .with_kind(SpanKind::Consumer)
            .with_attributes([
                KeyValue::new("gen_worker.run_id", run.run_id.to_string()),
                KeyValue::new("gen_worker.attempt", run.attempt),
            ])
            .start_with_context(&self.tracer, &parent);
        Box::new(Followed { context: parent.with_span(span), tracer: self.tracer.clone() })
    }

    fn settle(&self) {
        // What cannot be sent in time is lost, which the SDK says in its own log.
        let _ = self.provider.shutdown_with_timeout(self.timeout);
    }
}

/// A run's span.
struct Followed {
    context: Context,
    tracer: SdkTracer,
}

impl RunSpan for Followed {
    fn trace(&self) -> Option<TraceContext> {
        let span = self.context.span().span_context().clone();
        let parent = format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8());
        TraceContext::parse(&parent, &span.trace_state().header())
    }

    fn stage(&self, name: &'static str, began: SystemTime, ended: SystemTime) {
        let span = self.tracer.span_builder(name).with_start_time(began);
        let span = self.context.with_span(span.start_with_context(&self.tracer, &self.context));
        span.span().end_with_timestamp(ended);
    }

    fn end(&self, outcome: &'static str, failure: Option<&str>) {
        let span = self.context.span();
        span.set_attribute(KeyValue::new("gen_worker.outcome", outcome));
        span.set_status(failure.map_or(Status::Ok, |failure| Status::error(failure.to_owned())));
        span.end();
    }
}

fn remote(trace: &TraceContext) -> SpanContext {
    let flags = if trace.is_sampled() { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    let state = trace.state().and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default();
    let trace_id = TraceId::from_hex(trace.trace_id()).expect("it is checked");
    let span_id = SpanId::from_hex(trace.span_id()).expect("it is checked");
    SpanContext::new(trace_id, span_id, flags, true, state)
}
