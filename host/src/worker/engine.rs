//! The wasmtime settings that the compiler process and the workers share, and how a worker
//! turns one `.cwasm` into fresh instances. Knows nothing of sockets.

use std::num::NonZeroUsize;
use std::path::Path;

use wasmtime::component::{Component, Linker};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::bindings::ProviderPre;
use super::host_api::Guest;
use crate::limits;
use crate::protocol::{ABI_VERSIONS, CallLimits, PoolShape};

/// How often the epoch advances while a guest runs; the grain of the CPU deadline.
pub const TICK: std::time::Duration = std::time::Duration::from_millis(10);

/// Settings that native code depends on. Both sides must agree, so they are made here alone.
pub fn settings() -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .concurrency_support(false)
        .wasm_memory64(false)
        .shared_memory(false)
        .epoch_interruption(true)
        // Reserving exactly the cap bounds the address space of a worker, which RLIMIT_AS
        // needs; it costs explicit bounds checks, about a tenth more code.
        .memory_reservation(limits::CALL.memory_bytes)
        .memory_guard_size(64 << 10)
        .memory_reservation_for_growth(0)
        .memory_may_move(false)
        .guard_before_linear_memory(false)
        .max_wasm_stack(512 << 10)
        // Room for the host's frames above the guest's 512 KiB.
        .async_stack_size(1 << 20)
        .memory_init_cow(true)
        .generate_address_map(true)
        .wasm_backtrace_max_frames(NonZeroUsize::new(20));
    config
}

/// An engine that compiles. Only the compiler process makes one.
pub fn compiling() -> wasmtime::Result<Engine> {
    Engine::new(&settings())
}

/// An engine that runs what was compiled.
pub fn running(limits: &CallLimits, pool: Option<PoolShape>) -> wasmtime::Result<Engine> {
    let mut config = settings();
    if let Some(shape) = pool {
        let calls = limits.in_flight;
        let mut pooling = PoolingAllocationConfig::new();
        pooling
            .total_component_instances(calls)
            // Python components hold more than 32 core instances; the count reserves nothing.
            .total_core_instances(calls.saturating_mul(128))
            .max_core_instances_per_component(128)
            .max_component_instance_size(4 << 20)
            .max_core_instance_size(4 << 20)
            .total_memories(calls.saturating_mul(shape.memories.max(1)))
            .max_memories_per_component(shape.memories.max(1))
            .max_memory_size(usize::try_from(limits.memory_bytes).unwrap_or(usize::MAX))
            .total_tables(calls.saturating_mul(shape.tables.max(1)))
            .max_tables_per_component(shape.tables.max(1))
            .table_elements(20_000)
            .total_stacks(calls)
            // The kernel says which pages a call dirtied, and only those are wiped: a Rust
            // guest's stack ends a megabyte up, where wiping from the bottom never gets.
            .pagemap_scan(Enabled::Auto)
            .linear_memory_keep_resident(2 << 20)
            .table_keep_resident(64 << 10)
            .async_stack_keep_resident(64 << 10)
            .max_unused_warm_slots(calls.min(8));
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pooling));
    }
    Engine::new(&config)
}

/// Address space that a worker of this shape needs, with what its binary and heap take.
pub fn address_space(limits: &CallLimits, pool: Option<PoolShape>) -> u64 {
    let calls = u64::from(if pool.is_some() { limits.in_flight } else { 1 });
    let memories = u64::from(pool.map_or(2, |shape| shape.memories.max(1)));
    let slot = limits.memory_bytes + (128 << 10);
    (2 << 30) + calls * (memories * slot + (2 << 20))
}

/// A plugin, linked once and instantiated for each call.
pub struct Plugin {
    pub engine: Engine,
    pub pre: ProviderPre<Guest>,
    pub shape: PoolShape,
    /// It imports WASI interfaces, so its instances get an (empty) WASI context.
    pub wants_wasi: bool,
}

impl Plugin {
    /// Loads native code that the host's compiler process made.
    ///
    /// # Errors
    /// In words for the operator: what is missing or unknown.
    pub fn load(engine: &Engine, path: &Path) -> Result<Self, String> {
        // SAFETY: the file was written by our own compiler process, its tag was verified by
        // the host on the very descriptor this path names, and the cache never overwrites a
        // file in place, so the mapping can't change.
        let component = unsafe { Component::deserialize_file(engine, path) }
            .map_err(|error| format!("native code doesn't load: {error:#}"))?;
        let ty = component.component_type();
        let wants_wasi = ty.imports(engine).any(|(name, _)| name.starts_with("wasi:"));
        let shape = component.resources_required().map_or(PoolShape { memories: 1, tables: 1 }, |needs| {
            PoolShape { memories: needs.num_memories, tables: needs.num_tables }
        });
        let mut linker: Linker<Guest> = Linker::new(engine);
        super::bindings::Provider::add_to_linker::<_, wasmtime::component::HasSelf<_>>(
            &mut linker,
            |guest| guest,
        )
        .map_err(|error| format!("{error:#}"))?;
        if wants_wasi {
            wasmtime_wasi::p2::add_to_linker_async(&mut linker).map_err(|error| format!("{error:#}"))?;
        }
        let pre = linker
            .instantiate_pre(&component)
            .and_then(ProviderPre::new)
            .map_err(|error| misfit(&format!("{error:#}")))?;
        Ok(Self { engine: engine.clone(), pre, shape, wants_wasi })
    }
}

/// The names fit, for the compiler looked at them, but what they stand for doesn't. wasmtime says
/// where; what it means for a plugin is said here.
pub fn misfit(detail: &str) -> String {
    let known = ABI_VERSIONS.join(", ");
    if let Some((_, rest)) = detail.split_once("imports instance `wasi:") {
        let name = rest.split('`').next().unwrap_or_default();
        return format!(
            "needs `wasi:{name}`, which this host doesn't have; hint: build it for wasm32-wasip2 with the Rust release that Keywheel names ({detail})"
        );
    }
    format!(
        "differs from contract version {known} as it was released, in a type or a function, though it names that version; hint: build it with the SDK as released, its wit folder unchanged ({detail})"
    )
}
