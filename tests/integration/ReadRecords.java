import java.time.Duration;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/** Prints partition 0 of a topic: timestamp, key and value of each record, and its headers by name and value. */
class ReadRecords {
  public static void main(String[] arguments) {
    var settings = Map.<String, Object>of("bootstrap.servers", arguments[0], "check.crcs", "true");
    var bytes = new ByteArrayDeserializer();
    try (var consumer = new KafkaConsumer<byte[], byte[]>(settings, bytes, bytes)) {
      var partition = new TopicPartition(arguments[1], 0);
      consumer.assign(List.of(partition));
      consumer.seekToBeginning(List.of(partition));
      for (var left = Integer.parseInt(arguments[2]); left > 0; ) {
        for (var record : consumer.poll(Duration.ofSeconds(10))) {
          System.out.print(record.timestamp() + " " + text(record.key()) + " " + text(record.value()));
          record.headers().forEach(h -> System.out.print(" " + h.key() + " " + text(h.value())));
          System.out.println();
          left--;
        }
      }
    }
  }

  private static String text(byte[] bytes) {
    return Base64.getEncoder().encodeToString(bytes);
  }
}
