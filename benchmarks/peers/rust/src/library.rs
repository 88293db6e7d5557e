//! Each message into a struct and out of one by serde, and the safe interface of rdkafka.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord};
use serde::{Deserialize, Serialize};

use crate::kafka::{consumer_config, producer, variable, Deliveries, Outcome, Progress, MOST_RECORDS, POLL};

#[derive(Deserialize)]
struct Input {
    id: i64,
    logits: Vec<f32>,
}

#[derive(Serialize)]
struct Output {
    id: i64,
    probabilities: Vec<f32>,
}

pub fn run(stop: &AtomicBool) -> Outcome<()> {
    let (input, output) = (variable("INPUT"), variable("OUTPUT"));
    let consumer: BaseConsumer = consumer_config().create()?;
    let producer = producer()?;
    consumer.subscribe(&[&input])?;
    let mut progress = Progress::default();
    let mut before = progress.clone();
    while !stop.load(Ordering::Relaxed) {
        process_some(&consumer, &producer, &output, &mut progress)?;
        // What was produced before is waited for while this is on its way.
        before.settle(&producer)?;
        store(&consumer, &input, &before)?;
        before = progress.clone();
    }
    before.settle(&producer)?;
    store(&consumer, &input, &before)
    // The consumer commits what is stored when it is dropped.
}

fn process_some(
    consumer: &BaseConsumer,
    producer: &BaseProducer<Deliveries>,
    topic: &str,
    progress: &mut Progress,
) -> Outcome<()> {
    let mut wait = POLL;
    let mut value = Vec::new();
    for _ in 0..MOST_RECORDS {
        let Some(message) = consumer.poll(wait) else { break };
        let message = message?;
        transform(message.payload().unwrap_or_default(), &mut value)?;
        send(producer, topic, &message, &value)?;
        progress.add(message.partition(), message.offset());
        wait = Duration::ZERO;
    }
    Ok(())
}

fn transform(message: &[u8], value: &mut Vec<u8>) -> Outcome<()> {
    let Input { id, logits: mut numbers } = rmp_serde::from_slice(message)?;
    softmax(&mut numbers);
    value.clear();
    let output = Output { id, probabilities: numbers };
    output.serialize(&mut rmp_serde::Serializer::new(value).with_struct_map())?;
    Ok(())
}

fn softmax(numbers: &mut [f32]) {
    let largest = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for number in &mut *numbers {
        *number = (*number - largest).exp();
        sum += *number;
    }
    for number in numbers {
        *number /= sum;
    }
}

fn send(
    producer: &BaseProducer<Deliveries>,
    topic: &str,
    message: &BorrowedMessage<'_>,
    value: &[u8],
) -> Outcome<()> {
    let mut record = BaseRecord::<[u8], [u8]>::to(topic).partition(message.partition()).payload(value);
    record.key = message.key();
    record.timestamp = message.timestamp().to_millis();
    record.headers = message.headers().map(|headers| {
        headers.iter().fold(OwnedHeaders::new(), |copied, header| copied.insert(header))
    });
    producer.send(record).map_err(|(error, _)| error.into())
}

fn store(consumer: &BaseConsumer, topic: &str, progress: &Progress) -> Outcome<()> {
    for (partition, &following) in progress.following.iter().enumerate() {
        if following >= 0 {
            consumer.store_offset(topic, partition as i32, following - 1)?;
        }
    }
    Ok(())
}
