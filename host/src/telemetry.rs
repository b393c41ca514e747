//! Traces of attempts, for builds with the feature `otel`: one trace each, from the claim to the
//! report, sent by OTLP. The worker opens no socket: it says how long its part took, and the host
//! draws that. A span has no secret, no URL and no text of a plugin or a service in it. Without
//! the feature all of this is empty, and nothing is left of it.
//!
//! The exporter opens its own connection, to the operator's collector and with nothing of a
//! provider's: the one socket outward that isn't of `egress`.

pub use when_built::*;

#[cfg(feature = "otel")]
mod when_built {
    use std::sync::{OnceLock, PoisonError, RwLock};
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use opentelemetry::trace::{
        Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, Tracer as _,
        TracerProvider as _,
    };
    use opentelemetry::{Context, KeyValue};
    use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span as SdkSpan};

    use crate::config::telemetry::Telemetry;
    use crate::credential::Millis;
    use crate::limits;

    /// The collector's; None: nothing is traced.
    static TRACING: OnceLock<RwLock<Option<(SdkTracerProvider, SdkTracer)>>> = OnceLock::new();

    fn tracing() -> &'static RwLock<Option<(SdkTracerProvider, SdkTracer)>> {
        TRACING.get_or_init(RwLock::default)
    }

    fn tracer() -> Option<SdkTracer> {
        let tracing = tracing().read().unwrap_or_else(PoisonError::into_inner);
        tracing.as_ref().map(|(_, tracer)| tracer.clone())
    }

    /// Begins to trace, where the operator named a collector. A collector that isn't there loses
    /// its spans, and nothing else.
    pub fn start(options: &Telemetry) {
        let Some(endpoint) = &options.otlp_endpoint else { return };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(limits::TRACES_SENT)
            .build();
        let exporter = match exporter {
            Ok(exporter) => exporter,
            Err(error) => {
                tracing::error!(%error, "attempts can't be traced");
                return;
            }
        };
        let resource = Resource::builder_empty().with_attributes([
            KeyValue::new("service.name", "keywheel"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ]);
        // It sends from a thread of its own and drops what it has no room for.
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(options.sample))))
            .with_resource(resource.build())
            .build();
        let tracer = provider.tracer("keywheel");
        *tracing().write().unwrap_or_else(PoisonError::into_inner) = Some((provider, tracer));
        tracing::info!(sample = options.sample, "attempts are traced");
    }

    /// Sends what is left, for a moment. It blocks.
    pub fn stop() {
        let tracing = tracing().write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((provider, _)) = tracing
            && let Err(error) = provider.shutdown_with_timeout(limits::TRACES_SENT)
        {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }

    fn moment(at: Millis) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(at)
    }

    /// One attempt; nothing where it isn't traced.
    #[derive(Debug)]
    pub struct Trace(Span);

    impl Trace {
        pub fn begin(
            service: &str,
            credential: &str,
            action: &'static str,
            attempt: u32,
            claimed: Millis,
        ) -> Self {
            let Some(tracer) = tracer() else { return Self(Span(None)) };
            let builder = SpanBuilder::from_name(format!("attempt {action}"))
                .with_kind(SpanKind::Internal)
                .with_start_time(moment(claimed))
                .with_attributes([
                    KeyValue::new("keywheel.service", service.to_owned()),
                    KeyValue::new("keywheel.credential", credential.to_owned()),
                    KeyValue::new("keywheel.action", action),
                    KeyValue::new("keywheel.attempt", i64::from(attempt)),
                ]);
            Self(Span::of(tracer, builder, &Context::new()))
        }

        /// A step that begins now and ends when it is dropped.
        pub fn step(&self, name: &'static str) -> Span {
            self.0.step(name)
        }

        /// A step that is over.
        pub fn passed(&self, name: &'static str, from: Millis, to: Millis) {
            self.0.passed(name, moment(from), Duration::from_millis(to.saturating_sub(from)));
        }

        pub fn end(mut self, verdict: &str, rotated: bool) {
            self.0.text("keywheel.verdict", verdict);
            self.0.flag("keywheel.rotated", rotated);
        }
    }

    /// A step of an attempt. It ends when it is dropped.
    #[derive(Debug)]
    pub struct Span(Option<Box<Drawn>>);

    #[derive(Debug)]
    struct Drawn {
        tracer: SdkTracer,
        span: SdkSpan,
        began: SystemTime,
    }

    impl Span {
        fn of(tracer: SdkTracer, builder: SpanBuilder, parent: &Context) -> Self {
            let began = builder.start_time.unwrap_or_else(SystemTime::now);
            let span = tracer.build_with_context(builder.with_start_time(began), parent);
            // What isn't sampled is dropped here, with all that would hang below it.
            if !span.is_recording() {
                return Self(None);
            }
            Self(Some(Box::new(Drawn { tracer, span, began })))
        }

        fn below(drawn: &Drawn, builder: SpanBuilder) -> Self {
            let parent: SpanContext = drawn.span.span_context().clone();
            Self::of(drawn.tracer.clone(), builder, &Context::new().with_remote_span_context(parent))
        }

        pub fn step(&self, name: &'static str) -> Self {
            match &self.0 {
                Some(drawn) => Self::below(drawn, SpanBuilder::from_name(name).with_kind(SpanKind::Internal)),
                None => Self(None),
            }
        }

        fn passed(&self, name: &'static str, from: SystemTime, took: Duration) {
            let Some(drawn) = &self.0 else { return };
            let span = Self::below(drawn, SpanBuilder::from_name(name).with_start_time(from));
            if let Some(mut drawn) = span.0 {
                drawn.span.end_with_timestamp(from + took);
            }
        }

        /// What a worker says of its own part, which began with this step and is no longer than
        /// it was: its word is drawn, and believed no further.
        pub fn of_worker(&self, instantiate: Duration, total: Duration) {
            let Some(drawn) = &self.0 else { return };
            let elapsed = drawn.began.elapsed().unwrap_or_default();
            let (total, instantiate) = (total.min(elapsed), instantiate.min(total).min(elapsed));
            // It ended just now.
            let began = drawn.began + (elapsed - total);
            self.passed("worker.instantiate", began, instantiate);
            self.passed("worker.run", began + instantiate, total - instantiate);
        }

        pub fn text(&mut self, name: &'static str, value: &str) {
            if let Some(drawn) = &mut self.0 {
                drawn.span.set_attribute(KeyValue::new(name, value.to_owned()));
            }
        }

        pub fn number(&mut self, name: &'static str, value: u32) {
            if let Some(drawn) = &mut self.0 {
                drawn.span.set_attribute(KeyValue::new(name, i64::from(value)));
            }
        }

        pub fn flag(&mut self, name: &'static str, value: bool) {
            if let Some(drawn) = &mut self.0 {
                drawn.span.set_attribute(KeyValue::new(name, value));
            }
        }

        /// It went wrong, in one of a few words of ours.
        pub fn failed(&mut self, what: &'static str) {
            if let Some(drawn) = &mut self.0 {
                drawn.span.set_status(Status::error(what));
            }
        }
    }
}

#[cfg(not(feature = "otel"))]
mod when_built {
    use std::time::Duration;

    use crate::config::telemetry::Telemetry;
    use crate::credential::Millis;

    /// The configuration is refused before where it asks for traces.
    pub const fn start(_: &Telemetry) {}

    pub const fn stop() {}

    #[derive(Debug)]
    pub struct Trace;

    impl Trace {
        pub const fn begin(_: &str, _: &str, _: &'static str, _: u32, _: Millis) -> Self {
            Self
        }

        pub const fn step(&self, _: &'static str) -> Span {
            Span
        }

        pub const fn passed(&self, _: &'static str, _: Millis, _: Millis) {}

        pub const fn end(self, _: &str, _: bool) {}
    }

    #[derive(Debug)]
    pub struct Span;

    impl Span {
        pub const fn step(&self, _: &'static str) -> Self {
            Self
        }

        pub const fn of_worker(&self, _: Duration, _: Duration) {}

        pub const fn text(&mut self, _: &'static str, _: &str) {}

        pub const fn number(&mut self, _: &'static str, _: u32) {}

        pub const fn flag(&mut self, _: &'static str, _: bool) {}

        pub const fn failed(&mut self, _: &'static str) {}
    }
}
