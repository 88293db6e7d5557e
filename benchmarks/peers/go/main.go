// Command softmax-peer is a peer in Go, on franz-go.
//
//	BOOTSTRAP=… INPUT=… OUTPUT=… GROUP=… softmax-peer library|by-hand
//
// It keeps key, partition, order, timestamp and headers, and commits what is acknowledged: at-least-once.
package main

import (
	"context"
	"errors"
	"log"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	mostRecords = 10_000
	batchBytes  = 1_000_000
	drainTime   = 30 * time.Second
)

// transform returns the output for each of some records.
type transform func(records []*kgo.Record) ([][]byte, error)

// inFlight is what one poll has produced and is not known to be acknowledged yet.
type inFlight struct {
	sync.WaitGroup
	once    sync.Once
	failure error
	last    []*kgo.Record
}

func (f *inFlight) delivered(_ *kgo.Record, err error) {
	if err != nil {
		f.once.Do(func() { f.failure = err })
	}
	f.Done()
}

// settle waits for the acknowledgements, and marks what was read for the next commit.
func (f *inFlight) settle(client *kgo.Client) error {
	f.Wait()
	if f.failure == nil {
		client.MarkCommitRecords(f.last...)
	}
	return f.failure
}

func connect() (*kgo.Client, error) {
	return kgo.NewClient(
		kgo.SeedBrokers(os.Getenv("BOOTSTRAP")),
		kgo.ConsumeTopics(os.Getenv("INPUT")),
		kgo.ConsumerGroup(os.Getenv("GROUP")),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Only what is marked is committed, and only what is acknowledged is marked.
		kgo.AutoCommitMarks(),
		kgo.AutoCommitInterval(time.Second),
		kgo.DefaultProduceTopic(os.Getenv("OUTPUT")),
		// Idempotence is franz-go's default.
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.ProducerBatchMaxBytes(batchBytes),
		kgo.ProducerLinger(0),
		// Above two polls' records, so that `Produce` does not block.
		kgo.MaxBufferedRecords(4*mostRecords),
	)
}

func produce(client *kgo.Client, records []*kgo.Record, values [][]byte) *inFlight {
	batch := new(inFlight)
	batch.Add(len(records))
	// The client must not be stopped by the signal while it delivers.
	ctx := context.Background()
	for i, record := range records {
		client.Produce(ctx, &kgo.Record{
			Key:       record.Key,
			Value:     values[i],
			Headers:   record.Headers,
			Timestamp: record.Timestamp,
			Partition: record.Partition,
		}, batch.delivered)
		if i+1 == len(records) || records[i+1].Partition != record.Partition {
			batch.last = append(batch.last, record)
		}
	}
	return batch
}

func run(stop context.Context, apply transform) error {
	client, err := connect()
	if err != nil {
		return err
	}
	defer client.Close()
	before := new(inFlight)
	for {
		fetches := client.PollRecords(stop, mostRecords)
		if stop.Err() != nil {
			break
		}
		if err := errors.Join(fetchErrors(fetches)...); err != nil {
			return err
		}
		records := fetches.Records()
		values, err := apply(records)
		if err != nil {
			return err
		}
		batch := produce(client, records, values)
		// One poll's acknowledgements are waited for while the next one's are on their way.
		if err := before.settle(client); err != nil {
			return err
		}
		before = batch
	}
	if err := before.settle(client); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	return client.CommitMarkedOffsets(ctx)
}

func fetchErrors(fetches kgo.Fetches) (failures []error) {
	for _, failure := range fetches.Errors() {
		failures = append(failures, failure.Err)
	}
	return failures
}

func main() {
	log.SetFlags(0)
	modes := map[string]transform{"library": withLibrary, "by-hand": byHand}
	if len(os.Args) != 2 || modes[os.Args[1]] == nil {
		log.Fatal("usage: softmax-peer library|by-hand")
	}
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	if err := run(stop, modes[os.Args[1]]); err != nil {
		log.Fatal(err)
	}
}
