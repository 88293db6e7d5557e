//! What both programs share: settings, and the count of what is acknowledged.

use std::error::Error;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer, ProducerContext};
use rdkafka::ClientContext;

pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// Records that are read before anything is waited for.
pub const MOST_RECORDS: usize = 10_000;
pub const MOST_PARTITIONS: usize = 64;
pub const POLL: Duration = Duration::from_millis(100);
const SETTLE: Duration = Duration::from_secs(60);

pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is to be set"))
}

pub fn consumer_config() -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", variable("BOOTSTRAP"))
        .set("group.id", variable("GROUP"))
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        // By default it stops for a second where so many records wait to be read.
        .set("queued.min.messages", "1000000")
        .set("fetch.queue.backoff.ms", "10")
        // What is stored is committed each second and at the end; we store what is acknowledged.
        .set("enable.auto.offset.store", "false")
        .set("auto.commit.interval.ms", "1000");
    config
}

pub fn producer() -> Outcome<BaseProducer<Deliveries>> {
    let producer = ClientConfig::new()
        .set("bootstrap.servers", variable("BOOTSTRAP"))
        .set("acks", "all")
        .set("enable.idempotence", "true")
        // Wait a little so that batches fill.
        .set("linger.ms", "5")
        .set("batch.size", "1000000")
        .set("compression.type", "none")
        // Above two polls' records, so that nothing that is produced is refused.
        .set("queue.buffering.max.messages", (4 * MOST_RECORDS).to_string())
        .set("queue.buffering.max.kbytes", "1048576")
        .create_with_context(Deliveries::default())?;
    Ok(producer)
}

/// How many deliveries each output partition has seen, and the first failure.
pub struct Deliveries {
    acknowledged: [AtomicU64; MOST_PARTITIONS],
    failure: AtomicI64,
}

impl Default for Deliveries {
    fn default() -> Self {
        Self {
            acknowledged: std::array::from_fn(|_| AtomicU64::new(0)),
            failure: AtomicI64::new(0),
        }
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(message) => self.count(message),
            Err((error, _)) => {
                let code = error.rdkafka_error_code().map_or(-1, |code| code as i64);
                self.failure.store(code, Ordering::Relaxed);
            }
        }
    }
}

impl Deliveries {
    fn count(&self, message: &BorrowedMessage<'_>) {
        self.acknowledged[message.partition() as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// What has been produced to each partition, and the offset that stands for it in the input.
#[derive(Clone)]
pub struct Progress {
    pub produced: [u64; MOST_PARTITIONS],
    pub following: [i64; MOST_PARTITIONS],
}

impl Default for Progress {
    fn default() -> Self {
        Self { produced: [0; MOST_PARTITIONS], following: [-1; MOST_PARTITIONS] }
    }
}

impl Progress {
    pub fn add(&mut self, partition: i32, offset: i64) {
        self.produced[partition as usize] += 1;
        self.following[partition as usize] = offset + 1;
    }

    /// Wait until all of it is acknowledged.
    pub fn settle(&self, producer: &BaseProducer<Deliveries>) -> Outcome<()> {
        let deliveries = producer.context();
        let deadline = Instant::now() + SETTLE;
        let pending = |partition: usize| {
            deliveries.acknowledged[partition].load(Ordering::Relaxed) < self.produced[partition]
        };
        while (0..MOST_PARTITIONS).any(pending) {
            producer.poll(Duration::from_millis(1));
            let failure = deliveries.failure.load(Ordering::Relaxed);
            if failure != 0 {
                return Err(format!("a delivery failed with code {failure}").into());
            }
            if Instant::now() > deadline {
                return Err("deliveries are not acknowledged".into());
            }
        }
        Ok(())
    }
}
