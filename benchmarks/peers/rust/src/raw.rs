//! By librdkafka's C interface in batches; numbers are rewritten where they lie, by vector instructions.
//!
//! It knows this message's layout and no other.

use std::ffi::{c_char, c_void, CStr, CString};
use std::ptr::{null, null_mut};
use std::slice::from_raw_parts;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::bindings as rk;
use rdkafka::producer::{BaseProducer, Producer};

use crate::kafka::{consumer_config, producer, variable, Deliveries, Outcome, Progress, MOST_RECORDS, POLL};

const INPUT_FIELD: &[u8] = b"\xa6logits";
const OUTPUT_FIELD: &[u8] = b"\xadprobabilities";
const MAP_AND_ID: &[u8] = b"\x82\xa2id";
const FLOAT32: u8 = 0xca;
/// A tag and a float32.
const ELEMENT: usize = 5;
/// librdkafka's RD_KAFKA_PARTITION_UA, a macro.
const ANY_PARTITION: i32 = -1;
/// Numbers that are worked on side by side.
const LANES: usize = 16;

pub fn run(stop: &AtomicBool) -> Outcome<()> {
    let consumer = RawConsumer::new(&variable("INPUT"))?;
    let producer = producer()?;
    let output = Topic::new(producer.client().native_ptr(), &variable("OUTPUT"))?;
    let mut messages = vec![null_mut(); MOST_RECORDS];
    let mut scratch = Scratch::default();
    let mut progress = Progress::default();
    let mut before = progress.clone();
    while !stop.load(Ordering::Relaxed) {
        let count = consumer.read(&mut messages)?;
        for &message in &messages[..count] {
            // SAFETY: the message is ours until it is destroyed below.
            unsafe {
                let sent = forward(&producer, &output, &*message, &mut scratch, &mut progress);
                rk::rd_kafka_message_destroy(message);
                sent?;
            }
        }
        // What was produced before is waited for while this is on its way.
        before.settle(&producer)?;
        consumer.store(&before)?;
        before = progress.clone();
    }
    before.settle(&producer)?;
    consumer.store(&before)
}

/// Transform one message and produce the result.
///
/// # Safety
/// The message is one that librdkafka gave and that is not yet destroyed.
unsafe fn forward(
    producer: &BaseProducer<Deliveries>,
    output: &Topic,
    message: &rk::rd_kafka_message_t,
    scratch: &mut Scratch,
    progress: &mut Progress,
) -> Outcome<()> {
    if message.err != rk::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Err(error_text(message.err).into());
    }
    let value = if message.payload.is_null() { &[] } else { from_raw_parts(message.payload.cast(), message.len) };
    let value = scratch.transform(value).ok_or("not a map of an id and float32 logits")?;
    output.produce(producer.client().native_ptr(), message, value)?;
    progress.add(message.partition, message.offset);
    Ok(())
}

/// A consumer whose group is left to librdkafka, and its queue.
struct RawConsumer {
    client: *mut rk::rd_kafka_t,
    queue: *mut rk::rd_kafka_queue_t,
    topic: Topic,
}

impl RawConsumer {
    fn new(topic: &str) -> Outcome<Self> {
        let config = consumer_config().create_native_config()?;
        let mut words = [0 as c_char; 512];
        // SAFETY: the client takes the configuration over; all pointers are its own.
        unsafe {
            let kind = rk::rd_kafka_type_t::RD_KAFKA_CONSUMER;
            let client = rk::rd_kafka_new(kind, config.ptr(), words.as_mut_ptr(), words.len());
            if client.is_null() {
                return Err(CStr::from_ptr(words.as_ptr()).to_string_lossy().into_owned().into());
            }
            std::mem::forget(config);
            rk::rd_kafka_poll_set_consumer(client);
            let name = CString::new(topic)?;
            let topics = rk::rd_kafka_topic_partition_list_new(1);
            rk::rd_kafka_topic_partition_list_add(topics, name.as_ptr(), ANY_PARTITION);
            let answer = rk::rd_kafka_subscribe(client, topics);
            rk::rd_kafka_topic_partition_list_destroy(topics);
            check(answer)?;
            let queue = rk::rd_kafka_queue_get_consumer(client);
            Ok(Self { client, queue, topic: Topic::new(client, topic)? })
        }
    }

    /// Read what is there, and wait a little where nothing is.
    fn read(&self, messages: &mut [*mut rk::rd_kafka_message_t]) -> Outcome<usize> {
        let read = |messages: &mut [*mut rk::rd_kafka_message_t], wait| {
            // SAFETY: there is room for as many as are asked for.
            unsafe { rk::rd_kafka_consume_batch_queue(self.queue, wait, messages.as_mut_ptr(), messages.len()) }
        };
        // It waits for as many as it is asked for: so for the first alone, and then for none.
        let first = read(&mut messages[..1], POLL.as_millis() as i32);
        if first <= 0 {
            return Ok(0);
        }
        let more = read(&mut messages[1..], 0);
        if more < 0 {
            return Err("librdkafka cannot read".into());
        }
        Ok(1 + more as usize)
    }

    fn store(&self, progress: &Progress) -> Outcome<()> {
        for (partition, &following) in progress.following.iter().enumerate() {
            if following >= 0 {
                // SAFETY: the topic lives as long as we do.
                check(unsafe { rk::rd_kafka_offset_store(self.topic.0, partition as i32, following - 1) })?;
            }
        }
        Ok(())
    }
}

impl Drop for RawConsumer {
    fn drop(&mut self) {
        // SAFETY: nothing uses them any more. Closing commits what is stored.
        unsafe {
            rk::rd_kafka_consumer_close(self.client);
            rk::rd_kafka_queue_destroy(self.queue);
            rk::rd_kafka_topic_destroy(self.topic.0);
            rk::rd_kafka_destroy(self.client);
        }
    }
}

/// A topic's handle, which its client outlives.
struct Topic(*mut rk::rd_kafka_topic_t);

impl Topic {
    fn new(client: *mut rk::rd_kafka_t, name: &str) -> Outcome<Self> {
        let name = CString::new(name)?;
        // SAFETY: a null configuration stands for the client's.
        let topic = unsafe { rk::rd_kafka_topic_new(client, name.as_ptr(), null_mut()) };
        if topic.is_null() { Err("librdkafka has no such topic".into()) } else { Ok(Self(topic)) }
    }

    /// Produce a value with a message's key, partition, timestamp and headers; all is copied.
    ///
    /// # Safety
    /// The message is not yet destroyed.
    unsafe fn produce(
        &self,
        client: *mut rk::rd_kafka_t,
        message: &rk::rd_kafka_message_t,
        value: &[u8],
    ) -> Outcome<()> {
        let mut kind = rk::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        let timestamp = rk::rd_kafka_message_timestamp(message, &mut kind);
        let mut headers: *mut rk::rd_kafka_headers_t = null_mut();
        let has_headers = rk::rd_kafka_message_headers(message, &mut headers)
            == rk::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
        let copied = if has_headers { rk::rd_kafka_headers_copy(headers) } else { null_mut() };
        let error = rk::rd_kafka_producev(
            client,
            rk::rd_kafka_vtype_t::RD_KAFKA_VTYPE_RKT, self.0,
            rk::rd_kafka_vtype_t::RD_KAFKA_VTYPE_PARTITION, message.partition,
            rk::rd_kafka_vtype_t::RD_KAFKA_VTYPE_MSGFLAGS, rk::RD_KAFKA_MSG_F_COPY,
            rk::rd_kafka_vtype_t::RD_KAFKA_VTYPE_KEY, message.key, message.key_len,
            rk::rd_kafka_vtype_t::RD_KAFKA_VTYPE_VALUE, value.as_ptr().cast::<c_void>(), value.len(),
            rk::rd_kafka_vtype_t::RD_KAFKA_VTYPE_TIMESTAMP, timestamp,
            rk::rd_kafka_vtype_t::RD_KAFKA_VTYPE_HEADERS, copied,
            rk::rd_kafka_vtype_t::RD_KAFKA_VTYPE_END, null::<c_void>(),
        );
        if error != rk::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && has_headers {
            rk::rd_kafka_headers_destroy(copied);
        }
        check(error)
    }
}

fn check(error: rk::rd_kafka_resp_err_t) -> Outcome<()> {
    match error {
        rk::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        error => Err(error_text(error).into()),
    }
}

fn error_text(error: rk::rd_kafka_resp_err_t) -> String {
    // SAFETY: it returns a text that lives for ever.
    unsafe { CStr::from_ptr(rk::rd_kafka_err2str(error)) }.to_string_lossy().into_owned()
}

/// Buffers that are kept from message to message.
#[derive(Default)]
struct Scratch {
    value: Vec<u8>,
    numbers: Vec<f32>,
}

impl Scratch {
    /// The output for a message; none if it has another layout.
    fn transform(&mut self, message: &[u8]) -> Option<&[u8]> {
        let field = field_at(message)?;
        let array = &message[field + INPUT_FIELD.len()..];
        let (header, count) = array_header(array)?;
        let elements = &array[header..];
        if elements.len() != count * ELEMENT {
            return None;
        }
        self.numbers.clear();
        let mut all_float = true;
        self.numbers.extend(elements.chunks_exact(ELEMENT).map(|element| {
            all_float &= element[0] == FLOAT32;
            f32::from_be_bytes([element[1], element[2], element[3], element[4]])
        }));
        if !all_float {
            return None;
        }
        softmax(&mut self.numbers);
        self.value.clear();
        self.value.extend_from_slice(&message[..field]);
        self.value.extend_from_slice(OUTPUT_FIELD);
        self.value.extend_from_slice(array);
        let begin = self.value.len() - elements.len();
        for (element, number) in self.value[begin..].chunks_exact_mut(ELEMENT).zip(&self.numbers) {
            element[1..].copy_from_slice(&number.to_be_bytes());
        }
        Some(&self.value)
    }
}

/// Where the name of the second field begins, after an integer.
fn field_at(message: &[u8]) -> Option<usize> {
    let rest = message.strip_prefix(MAP_AND_ID)?;
    let width = match *rest.first()? {
        // uint8 to uint64, int8 to int64; any other tag is an integer of one byte.
        tag @ 0xcc..=0xd3 => 1 << (tag & 3),
        _ => 0,
    };
    rest.get(1 + width..)?.starts_with(INPUT_FIELD).then_some(MAP_AND_ID.len() + 1 + width)
}

/// The size of an array's header, and the array's length.
fn array_header(data: &[u8]) -> Option<(usize, usize)> {
    match *data {
        [tag @ 0x90..=0x9f, ..] => Some((1, usize::from(tag & 0xf))),
        [0xdc, a, b, ..] => Some((3, usize::from(u16::from_be_bytes([a, b])))),
        [0xdd, a, b, c, d, ..] => Some((5, u32::from_be_bytes([a, b, c, d]) as usize)),
        _ => None,
    }
}

fn softmax(numbers: &mut [f32]) {
    let largest = largest(numbers);
    for number in &mut *numbers {
        *number = exp(*number - largest);
    }
    let scale = 1.0 / sum(numbers);
    for number in numbers {
        *number *= scale;
    }
}

fn largest(numbers: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = numbers.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &number) in lanes.iter_mut().zip(chunk) {
            *lane = if number > *lane { number } else { *lane };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

fn sum(numbers: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let chunks = numbers.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (lane, &number) in lanes.iter_mut().zip(chunk) {
            *lane += number;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// e to a number that is not positive, to a few units in the last place; without a branch, so that the compiler can
/// do many at once.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, of which the first has few bits: its multiples are exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // Taylor's series, by Horner's rule.
    let p = 1.0 + r * (1.0 + r * (1.0 / 2.0 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r / 720.0)))));
    let power = ((shifted.to_bits() as i32 - ROUND.to_bits() as i32 + 127) as u32) << 23;
    p * f32::from_bits(power)
}
