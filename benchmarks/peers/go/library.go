package main

import (
	"math"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/vmihailenco/msgpack/v5"
)

type input struct {
	ID     int64     `msgpack:"id"`
	Logits []float32 `msgpack:"logits"`
}

type output struct {
	ID            int64     `msgpack:"id"`
	Probabilities []float32 `msgpack:"probabilities"`
}

// withLibrary decodes and encodes each message with a msgpack library.
func withLibrary(records []*kgo.Record) ([][]byte, error) {
	values := make([][]byte, len(records))
	var message input
	for i, record := range records {
		message.Logits = message.Logits[:0]
		if err := msgpack.Unmarshal(record.Value, &message); err != nil {
			return nil, err
		}
		softmax(message.Logits)
		value, err := encode(output{message.ID, message.Logits})
		if err != nil {
			return nil, err
		}
		values[i] = value
	}
	return values, nil
}

func encode(message output) ([]byte, error) {
	encoder := msgpack.GetEncoder()
	defer msgpack.PutEncoder(encoder)
	var buffer writer
	buffer = make([]byte, 0, 5*len(message.Probabilities)+32)
	encoder.Reset(&buffer)
	// Without it an int64 takes nine bytes, whatever its value.
	encoder.UseCompactInts(true)
	err := encoder.Encode(&message)
	return buffer, err
}

// writer is a slice that grows by what is written.
type writer []byte

func (w *writer) Write(data []byte) (int, error) {
	*w = append(*w, data...)
	return len(data), nil
}

func (w *writer) WriteByte(data byte) error {
	*w = append(*w, data)
	return nil
}

func softmax(numbers []float32) {
	largest := float32(math.Inf(-1))
	for _, number := range numbers {
		largest = max(largest, number)
	}
	var sum float32
	for i, number := range numbers {
		numbers[i] = float32(math.Exp(float64(number - largest)))
		sum += numbers[i]
	}
	for i := range numbers {
		numbers[i] /= sum
	}
}
