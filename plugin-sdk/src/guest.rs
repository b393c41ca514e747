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

    use core::alloc::{GlobalAlloc, Layout};
    use core::arch::wasm32;
    use core::cell::UnsafeCell;
    use core::fmt::{self, Write};

    use dlmalloc::Dlmalloc;

    use crate::bindings::keywheel::provider::log::Level;

    /// What most calls need of memory. It is part of the instance from its start: growing costs
    /// the host two changes of its page tables for each call, which is more than the call itself.
    /// Untouched, it takes no memory and no room in the file.
    const RESERVED: usize = 192 << 10;

    /// dlmalloc over the reserved memory first and grown memory after it.
    #[derive(Debug)]
    pub struct Allocator;

    struct State(UnsafeCell<Dlmalloc<Memory>>);

    // SAFETY: a component of this contract has one thread.
    unsafe impl Sync for State {}

    static STATE: State = State(UnsafeCell::new(Dlmalloc::new_with_allocator(Memory)));

    impl Allocator {
        #[expect(clippy::mut_from_ref, reason = "the one thread enters the allocator once at a time")]
        fn state(&self) -> &mut Dlmalloc<Memory> {
            // SAFETY: no call into dlmalloc calls back, so there is never a second reference.
            unsafe { &mut *STATE.0.get() }
        }
    }

    // SAFETY: every promise is dlmalloc's, to which the calls are passed as they are.
    unsafe impl GlobalAlloc for Allocator {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: as the caller promises.
            unsafe { self.state().malloc(layout.size(), layout.align()) }
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            // SAFETY: as the caller promises.
            unsafe { self.state().free(pointer, layout.size(), layout.align()) }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            // SAFETY: as the caller promises.
            unsafe { self.state().calloc(layout.size(), layout.align()) }
        }

        unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            // SAFETY: as the caller promises.
            unsafe { self.state().realloc(pointer, layout.size(), layout.align(), size) }
        }
    }

    /// Where dlmalloc gets its memory.
    struct Memory;

    #[repr(align(16))]
    struct Reserved(UnsafeCell<[u8; RESERVED]>);

    // SAFETY: handed to dlmalloc whole and once; nothing else touches it.
    unsafe impl Sync for Reserved {}

    static ARENA: Reserved = Reserved(UnsafeCell::new([0; RESERVED]));
    static ARENA_GIVEN: Given = Given(UnsafeCell::new(false));

    struct Given(UnsafeCell<bool>);

    // SAFETY: a component of this contract has one thread.
    unsafe impl Sync for Given {}

    // SAFETY: both kinds of memory are this module's own, zeroed, and given away once.
    unsafe impl dlmalloc::Allocator for Memory {
        fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
            // SAFETY: one thread, and no reference outlives this line.
            let given = unsafe { core::mem::replace(&mut *ARENA_GIVEN.0.get(), true) };
            if !given && size <= RESERVED {
                return (ARENA.0.get().cast(), RESERVED, 0);
            }
            let pages = size.div_ceil(self.page_size());
            match wasm32::memory_grow(0, pages) {
                usize::MAX => (core::ptr::null_mut(), 0, 0),
                before => (
                    core::ptr::with_exposed_provenance_mut(before * self.page_size()),
                    pages * self.page_size(),
                    0,
                ),
            }
        }

        fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
            core::ptr::null_mut()
        }

        fn free_part(&self, _: *mut u8, _: usize, _: usize) -> bool {
            false
        }

        fn free(&self, _: *mut u8, _: usize) -> bool {
            false
        }

        fn can_release_part(&self, _: u32) -> bool {
            false
        }

        fn allocates_zeros(&self) -> bool {
            true
        }

        fn page_size(&self) -> usize {
            64 << 10
        }
    }

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
            // Nothing here may panic itself, nor bring the code for that along.
            let Some(room) = self.bytes.get_mut(self.length..) else { return Ok(()) };
            let fits = &text.as_bytes()[..text.floor_char_boundary(room.len())];
            for (to, from) in room.iter_mut().zip(fits) {
                *to = *from;
            }
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
