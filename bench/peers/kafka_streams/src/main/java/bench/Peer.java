package bench;

import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.File;
import java.io.IOException;
import java.time.Duration;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.PunctuationType;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;

/**
 * The simple job of bench/peers/job.py on Kafka Streams, exactly_once_v2, one thread.
 *
 * <p>What has been seen is kept in a plain set, not in a store with a changelog: faster than a real
 * job could be, and so in this peer's favour.
 *
 * <p>Arguments: bootstrap, output topic, application id, the file of prices, a state directory.
 */
public final class Peer {
    /** The columns that the job uses; the others are skipped by the parser. */
    @JsonIgnoreProperties(ignoreUnknown = true)
    public static final class Event {
        public String event_id;
        public String ad_group_id;
        public long price_micros;
        public String kind;
    }

    private record Price(String basis, long bidMicros) {}

    private static final class Job implements Processor<byte[], byte[], byte[], byte[]> {
        private final ObjectMapper mapper = new ObjectMapper();
        private final ObjectReader reader = mapper.readerFor(Event.class);
        private final Map<String, Price> prices;
        private final Set<String> seen = new HashSet<>();
        private Map<String, Long> spendNanos = new HashMap<>();
        private int events;
        private ProcessorContext<byte[], byte[]> context;

        Job(Map<String, Price> prices) {
            this.prices = prices;
        }

        @Override
        public void init(ProcessorContext<byte[], byte[]> given) {
            context = given;
            context.schedule(Duration.ofMillis(100), PunctuationType.WALL_CLOCK_TIME, this::flush);
        }

        @Override
        public void process(Record<byte[], byte[]> record) {
            events++;
            Event event;
            try {
                event = reader.readValue(record.value());
            } catch (IOException error) {
                throw new IllegalStateException("an event that is no JSON", error);
            }
            if (!seen.add(event.event_id)) {
                return;
            }
            Price price = prices.get(event.ad_group_id);
            String topic = context.recordMetadata().orElseThrow().topic();
            long micros = Math.min(event.price_micros, price.bidMicros());
            long nanos = nanos(price.basis(), topic, event.kind, micros);
            if (nanos > 0) {
                spendNanos.merge(event.ad_group_id, nanos, Long::sum);
            }
        }

        private static long nanos(String basis, String topic, String kind, long micros) {
            return switch (basis) {
                case "cpm" -> topic.equals("ads.impressions") ? micros : 0;
                case "cpc" -> topic.equals("ads.clicks") ? micros * 1_000 : 0;
                default -> topic.equals("ads.clicks")
                                || (topic.equals("ads.engagements") && !"install".equals(kind))
                        ? micros * 1_000
                        : 0;
            };
        }

        private void flush(long nowMs) {
            if (events == 0) {
                return;
            }
            ObjectNode out = mapper.createObjectNode();
            out.put("events", events);
            ObjectNode spend = out.putObject("spend_nanos");
            spendNanos.forEach(spend::put);
            try {
                context.forward(new Record<>(null, mapper.writeValueAsBytes(out), nowMs));
            } catch (IOException error) {
                throw new IllegalStateException("sums that do not encode", error);
            }
            events = 0;
            spendNanos = new HashMap<>();
        }
    }

    public static void main(String[] args) throws IOException {
        Map<String, Price> prices = new HashMap<>();
        JsonNode file = new ObjectMapper().readTree(new File(args[3]));
        file.fields().forEachRemaining(entry -> {
            JsonNode pair = entry.getValue();
            prices.put(entry.getKey(), new Price(pair.get(0).asText(), pair.get(1).asLong()));
        });
        Topology topology = new Topology();
        List<String> topics = List.of("ads.impressions", "ads.clicks", "ads.engagements");
        topology.addSource("events", topics.toArray(String[]::new));
        topology.addProcessor("job", () -> new Job(prices), "events");
        topology.addSink("sums", args[1], "job");
        KafkaStreams streams = new KafkaStreams(topology, settings(args));
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
    }

    private static Properties settings(String[] args) {
        Properties settings = new Properties();
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, args[2]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, args[4]);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 100);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        settings.put(
                StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG,
                Serdes.ByteArraySerde.class.getName());
        settings.put(
                StreamsConfig.DEFAULT_VALUE_SERDE_CLASS_CONFIG,
                Serdes.ByteArraySerde.class.getName());
        settings.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        // The product fetches 4 MB at a time too.
        settings.put(StreamsConfig.consumerPrefix("max.partition.fetch.bytes"), 4 << 20);
        settings.put(StreamsConfig.consumerPrefix("max.poll.records"), 10_000);
        return settings;
    }
}
