import java.io.IOException;
import java.nio.file.Files;
import java.util.Optional;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.CountDownLatch;

import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.processor.StreamPartitioner;
import org.apache.kafka.streams.processor.api.ContextualFixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.msgpack.core.MessageBufferPacker;
import org.msgpack.core.MessagePack;
import org.msgpack.core.MessageUnpacker;

/**
 * A peer on Kafka Streams and msgpack-core.
 *
 *     BOOTSTRAP=… INPUT=… OUTPUT=… GROUP=… java StreamsPeer at_least_once|exactly_once_v2
 *
 * It keeps key, partition, timestamp and headers.
 */
public final class StreamsPeer {
    /** The partition of the record that this thread works on: a partitioner is not told. */
    private static final ThreadLocal<Integer> PARTITION = new ThreadLocal<>();

    private StreamsPeer() {}

    public static void main(String[] arguments) throws Exception {
        var builder = new StreamsBuilder();
        StreamPartitioner<byte[], byte[]> samePartition =
                (topic, key, value, partitions) -> Optional.of(Set.of(PARTITION.get()));
        builder.stream(System.getenv("INPUT"), Consumed.with(Serdes.ByteArray(), Serdes.ByteArray()))
                .processValues(Softmax::new)
                .to(
                        System.getenv("OUTPUT"),
                        Produced.with(Serdes.ByteArray(), Serdes.ByteArray()).withStreamPartitioner(samePartition));
        var streams = new KafkaStreams(builder.build(), settings(arguments[0]));
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        var ended = new CountDownLatch(1);
        streams.setStateListener((now, before) -> {
            if (now == KafkaStreams.State.ERROR) {
                ended.countDown();
            }
        });
        // A virtual machine that a signal ends reports it by its exit code, however cleanly it ended.
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            streams.close();
            Runtime.getRuntime().halt(0);
        }));
        streams.start();
        ended.await();
        Runtime.getRuntime().halt(1);
    }

    private static Properties settings(String guarantee) throws IOException {
        var settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, System.getenv("GROUP"));
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, System.getenv("BOOTSTRAP"));
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, guarantee);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, Files.createTempDirectory("streams").toString());
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.ISOLATION_LEVEL_CONFIG), "read_committed");
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 1_000_000);
        if (guarantee.equals(StreamsConfig.AT_LEAST_ONCE)) {
            // As often as the others; for exactly_once_v2 its own default, a tenth of it.
            settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 1000);
        }
        return settings;
    }

    /** A message in, its probabilities out. */
    private static final class Softmax extends ContextualFixedKeyProcessor<byte[], byte[], byte[]> {
        private final MessageBufferPacker packer = MessagePack.newDefaultBufferPacker();

        @Override
        public void process(FixedKeyRecord<byte[], byte[]> message) {
            PARTITION.set(context().recordMetadata().orElseThrow().partition());
            try {
                context().forward(message.withValue(transform(message.value())));
            } catch (IOException error) {
                throw new IllegalArgumentException(error);
            }
        }

        private byte[] transform(byte[] value) throws IOException {
            long id = 0;
            float[] numbers = new float[0];
            try (MessageUnpacker unpacker = MessagePack.newDefaultUnpacker(value)) {
                for (int field = unpacker.unpackMapHeader(); field > 0; field--) {
                    switch (unpacker.unpackString()) {
                        case "id" -> id = unpacker.unpackLong();
                        case "logits" -> numbers = floats(unpacker);
                        default -> unpacker.skipValue();
                    }
                }
            }
            softmax(numbers);
            packer.clear();
            packer.packMapHeader(2).packString("id").packLong(id).packString("probabilities");
            packer.packArrayHeader(numbers.length);
            for (float number : numbers) {
                packer.packFloat(number);
            }
            return packer.toByteArray();
        }

        private static float[] floats(MessageUnpacker unpacker) throws IOException {
            float[] numbers = new float[unpacker.unpackArrayHeader()];
            for (int i = 0; i < numbers.length; i++) {
                numbers[i] = unpacker.unpackFloat();
            }
            return numbers;
        }

        private static void softmax(float[] numbers) {
            float largest = Float.NEGATIVE_INFINITY;
            for (float number : numbers) {
                largest = Math.max(largest, number);
            }
            float sum = 0;
            for (int i = 0; i < numbers.length; i++) {
                numbers[i] = (float) Math.exp(numbers[i] - largest);
                sum += numbers[i];
            }
            for (int i = 0; i < numbers.length; i++) {
                numbers[i] /= sum;
            }
        }
    }
}
