//! Generated from the contract, and nothing else.

mod generated {
    wasmtime::component::bindgen!({
        path: "../plugin-sdk/wit",
        world: "provider",
        imports: {
            "keywheel:provider/http.send": async | trappable,
            "keywheel:provider/secrets.reveal": async | trappable,
            default: trappable,
        },
        exports: { default: async },
    });
}

pub use generated::keywheel::provider::{http, log, secrets, types};
pub use generated::{Provider, ProviderPre};
