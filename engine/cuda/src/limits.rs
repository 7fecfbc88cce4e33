//! What a device can do, measured: how fast it reads its memory, how many multiply-adds it does, and how long
//! a kernel that does nothing takes when another waits for it.

use rwkv_edge_plugin::Limits;

use crate::device::Device;
use crate::driver::{Event, Memory, Stream};
use crate::error::Result;

/// Far more than any second cache holds.
const READ_BYTES: u64 = 1 << 30;
const READ_THREADS: u32 = 512;
const READ_BLOCKS_A_MULTIPROCESSOR: u32 = 8;
const ARITHMETIC_THREADS: u32 = 256;
const ARITHMETIC_ROUNDS: u32 = 1 << 12;
/// Kernels of one graph.
const STEPS: u32 = 1000;
const REPEATS: usize = 7;

/// Median seconds of `work`, as the device's own clock has it.
fn seconds(stream: &Stream, device: &Device, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let (start, end) = (
        Event::new(&device.context, true)?,
        Event::new(&device.context, true)?,
    );
    work()?;
    let mut times = Vec::with_capacity(REPEATS);
    for _ in 0..REPEATS {
        start.mark(stream)?;
        work()?;
        end.mark(stream)?;
        end.wait()?;
        times.push(start.seconds_to(&end)?);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[REPEATS / 2])
}

pub(crate) fn measure(ordinal: u32) -> Result<Limits> {
    let device = Device::open(ordinal)?;
    let stream = Stream::new(&device.context)?;
    let sink = Memory::zeroed(&stream, 256)?;
    let (mut sink_address, mut n_words) = (sink.address(), READ_BYTES / 16);

    let words = Memory::zeroed(&stream, READ_BYTES)?;
    let mut words_address = words.address();
    let kernel = device.kernel("read_all", false)?;
    let n_blocks = READ_BLOCKS_A_MULTIPROCESSOR * device.multiprocessors;
    let read = seconds(&stream, &device, || {
        let mut parameters = [
            (&raw mut words_address).cast(),
            (&raw mut n_words).cast(),
            (&raw mut sink_address).cast(),
        ];
        // SAFETY: the kernel takes two addresses and a 64-bit number in this order, reads `n_words` words, and
        // may write one number at the sink.
        unsafe { stream.launch_raw(&kernel, [n_blocks, 1, 1], READ_THREADS, 0, &mut parameters) }
    })?;

    let kernel = device.kernel("arithmetic", false)?;
    let mut rounds = ARITHMETIC_ROUNDS;
    let n_blocks = 4 * device.multiprocessors;
    let arithmetic = seconds(&stream, &device, || {
        let mut parameters = [(&raw mut rounds).cast(), (&raw mut sink_address).cast()];
        // SAFETY: the kernel takes a 32-bit number and an address, where it may write one number.
        unsafe {
            stream.launch_raw(
                &kernel,
                [n_blocks, 1, 1],
                ARITHMETIC_THREADS,
                0,
                &mut parameters,
            )
        }
    })?;
    let n_threads = f64::from(n_blocks * ARITHMETIC_THREADS);
    // Sixteen (16, 16) by (16, 8) products a warp and round, or sixteen multiply-adds a thread.
    let a_thread = match device.tensor_cores {
        true => 16.0 * f64::from(16 * 16 * 8) / 32.0,
        false => 16.0,
    };

    let kernel = device.kernel("nothing", false)?;
    let graph = stream.record(|| {
        for _ in 0..STEPS {
            let mut parameters = [(&raw mut sink_address).cast()];
            // SAFETY: the kernel takes one address and does nothing.
            unsafe { stream.launch_raw(&kernel, [1, 1, 1], 32, 0, &mut parameters)? };
        }
        Ok(())
    })?;
    let steps = seconds(&stream, &device, || stream.replay(&graph))?;

    Ok(Limits {
        struct_size: size_of::<Limits>() as u32,
        reserved: 0,
        read_bytes_per_s: READ_BYTES as f64 / read,
        macs_per_s: n_threads * a_thread * f64::from(ARITHMETIC_ROUNDS) / arithmetic,
        step_seconds: steps / f64::from(STEPS),
    })
}
