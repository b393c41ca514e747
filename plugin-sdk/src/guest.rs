//! What the export macro puts around a provider: the contract's exports and, for plugins without
//! std, what std would have brought. Not for use by hand.

use alloc::string::String;
use core::marker::PhantomData;

use crate::Provider;
use crate::bindings::exports::keywheel::provider::guest::Guest;
use crate::cx::{Context, Cx};
use crate::manifest::Manifest;
use crate::verdict::{Failure, Outcome, Stop, Verdict};

/// A provider as the contract's exports.
pub struct Exported<P>(PhantomData<P>);

impl<P: Provider> Guest for Exported<P> {
    fn describe() -> Manifest {
        P::describe()
    }

    fn validate(context: Context) -> Result<Verdict, Failure> {
        P::validate(&Cx::new(context, P::describe)).or_else(Stop::into_verdict)
    }

    fn rotate(context: Context, method: String) -> Result<Outcome, Failure> {
        P::rotate(&Cx::new(context, P::describe), &method).or_else(Stop::into_outcome)
    }
}

#[cfg(target_family = "wasm")]
pub mod freestanding {
    //! For plugins without std.

    use core::alloc::Layout;
    use core::fmt::{self, Write};

    use crate::bindings::keywheel::provider::log::Level;

    pub use dlmalloc::GlobalDlmalloc as Allocator;

    // The compiler may call `memcmp` and its like, which on this target only the libc that comes
    // with it has. The linker takes what is called and nothing else, so no WASI comes along.
    #[link(name = "c")]
    unsafe extern "C" {}

    /// The canonical ABI's allocator: the host calls it to place arguments and answers.
    ///
    /// # Safety
    /// `old` is null with `old_size` 0, or came from here with `old_size` and `align`.
    pub unsafe fn realloc(old: *mut u8, old_size: usize, align: usize, new_size: usize) -> *mut u8 {
        if new_size == 0 {
            // The ABI wants an aligned address, and nothing is ever read there.
            return core::ptr::without_provenance_mut(align);
        }
        let pointer = if old_size == 0 {
            match Layout::from_size_align(new_size, align) {
                // SAFETY: `new_size` isn't zero.
                Ok(layout) => unsafe { alloc::alloc::alloc(layout) },
                Err(_) => core::ptr::null_mut(),
            }
        } else {
            // SAFETY: the caller promises that `old` was allocated with this size and alignment;
            // `new_size` isn't zero, and wasm32 has no sizes past `isize::MAX` to give.
            unsafe {
                alloc::alloc::realloc(old, Layout::from_size_align_unchecked(old_size, align), new_size)
            }
        };
        if pointer.is_null() {
            core::arch::wasm32::unreachable();
        }
        pointer
    }

    /// Logs the panic's message, then traps. Allocates nothing: the panic may be about memory.
    pub fn panic(panic: &core::panic::PanicInfo<'_>) -> ! {
        let mut line = Line { bytes: [0; 512], length: 0 };
        // A message that doesn't fit is cut, so there is no error to handle.
        let _ = write!(line, "{panic}");
        crate::host::emit(Level::Error, line.as_str());
        core::arch::wasm32::unreachable()
    }

    /// Text up to a fixed length.
    struct Line {
        bytes: [u8; 512],
        length: usize,
    }

    impl Line {
        fn as_str(&self) -> &str {
            core::str::from_utf8(&self.bytes[..self.length]).unwrap_or("a panic with an unreadable message")
        }
    }

    impl Write for Line {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let room = self.bytes.len() - self.length;
            let fits = &text[..text.floor_char_boundary(room)];
            self.bytes[self.length..self.length + fits.len()].copy_from_slice(fits.as_bytes());
            self.length += fits.len();
            Ok(())
        }
    }
}

/// Exports a [`Provider`] as the plugin. `export!(MyProvider)` is for crates that are `no_std` on
/// wasm: it brings allocator and panic handler, and the plugin imports nothing but Keywheel's
/// contract. `export!(MyProvider, std)` is for crates that use std; what they print becomes log
/// lines, and they have no files, no environment and no sockets.
///
/// On the native target it only checks that the type is a provider, so that unit tests run.
#[macro_export]
macro_rules! export {
    ($provider:ty) => {
        $crate::export!($provider, std);

        #[cfg(target_family = "wasm")]
        const _: () = {
            #[global_allocator]
            static ALLOCATOR: $crate::guest::freestanding::Allocator = $crate::guest::freestanding::Allocator;

            #[panic_handler]
            fn panic(panic: &::core::panic::PanicInfo<'_>) -> ! {
                $crate::guest::freestanding::panic(panic)
            }

            // SAFETY: the name is the canonical ABI's, and only this macro defines it.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn cabi_realloc(
                old: *mut u8,
                old_size: usize,
                align: usize,
                new_size: usize,
            ) -> *mut u8 {
                // SAFETY: called by the host by the rules of the canonical ABI.
                unsafe { $crate::guest::freestanding::realloc(old, old_size, align, new_size) }
            }
        };
    };
    ($provider:ty, std) => {
        const _: () = {
            const fn is_a_provider<P: $crate::Provider>() {}
            is_a_provider::<$provider>()
        };

        #[cfg(target_family = "wasm")]
        const _: () = {
            type Exported = $crate::guest::Exported<$provider>;
    $crate::bindings::export!(Exported with_types_in $crate::bindings);
        };
    };
}
