package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	float32Tag = 0xca
	// A tag and a float32.
	elementBytes = 5
)

var (
	inputField  = []byte("\xa6logits")
	outputField = []byte("\xadprobabilities")
	mapAndID    = []byte("\x82\xa2id")
	errMessage  = errors.New("not a map of an id and float32 logits")
)

// byHand copies each message into one buffer for all, and overwrites the numbers there.
func byHand(records []*kgo.Record) ([][]byte, error) {
	size := 0
	for _, record := range records {
		size += len(record.Value) + len(outputField) - len(inputField)
	}
	buffer := make([]byte, 0, size)
	values := make([][]byte, len(records))
	for i, record := range records {
		field := fieldAt(record.Value)
		if field < 0 {
			return nil, errMessage
		}
		array := field + len(inputField)
		header, count := arrayHeader(record.Value[array:])
		if header == 0 || len(record.Value) != array+header+count*elementBytes {
			return nil, errMessage
		}
		begin := len(buffer)
		buffer = append(buffer, record.Value[:field]...)
		buffer = append(buffer, outputField...)
		buffer = append(buffer, record.Value[array:]...)
		if !rewrite(buffer[len(buffer)-count*elementBytes:]) {
			return nil, errMessage
		}
		values[i] = buffer[begin:len(buffer):len(buffer)]
	}
	return values, nil
}

// fieldAt returns where the name of the second field begins, after an integer; -1 if it is not there.
func fieldAt(value []byte) int {
	if len(value) <= len(mapAndID) || !bytes.HasPrefix(value, mapAndID) {
		return -1
	}
	at := len(mapAndID) + 1
	// uint8 to uint64, int8 to int64; any other tag is an integer of one byte.
	if tag := value[len(mapAndID)]; tag >= 0xcc && tag <= 0xd3 {
		at += 1 << (tag & 3)
	}
	if at > len(value) || !bytes.HasPrefix(value[at:], inputField) {
		return -1
	}
	return at
}

// arrayHeader returns the size of an array's header and the array's length; 0 if it is none.
func arrayHeader(data []byte) (header, count int) {
	switch {
	case len(data) >= 1 && data[0]&0xf0 == 0x90:
		return 1, int(data[0] & 0xf)
	case len(data) >= 3 && data[0] == 0xdc:
		return 3, int(binary.BigEndian.Uint16(data[1:]))
	case len(data) >= 5 && data[0] == 0xdd:
		return 5, int(binary.BigEndian.Uint32(data[1:]))
	}
	return 0, 0
}

// rewrite makes logits, each with its tag, probabilities in place; false if one is no float32.
func rewrite(elements []byte) bool {
	largest := float32(math.Inf(-1))
	for rest := elements; len(rest) >= elementBytes; rest = rest[elementBytes:] {
		if rest[0] != float32Tag {
			return false
		}
		largest = max(largest, math.Float32frombits(binary.BigEndian.Uint32(rest[1:])))
	}
	var sum float32
	for rest := elements; len(rest) >= elementBytes; rest = rest[elementBytes:] {
		power := exp(math.Float32frombits(binary.BigEndian.Uint32(rest[1:])) - largest)
		sum += power
		binary.BigEndian.PutUint32(rest[1:], math.Float32bits(power))
	}
	scale := 1 / sum
	for rest := elements; len(rest) >= elementBytes; rest = rest[elementBytes:] {
		power := math.Float32frombits(binary.BigEndian.Uint32(rest[1:]))
		binary.BigEndian.PutUint32(rest[1:], math.Float32bits(power*scale))
	}
	return true
}

// exp is e to a number that is not positive, to a few units in the last place of a float32; 0 below the normal ones.
func exp(x float32) float32 {
	// Also for NaN, which a service would have to refuse.
	if !(x > -87) {
		return 0
	}
	// x = n ln 2 + r, with r in ±ln 2 / 2; ln 2 in two parts, of which the first times n is exact.
	n := int32(x*math.Log2E - 0.5)
	whole := float32(n)
	r := x - whole*0.693359375 + whole*2.12194440e-4
	p := 1 + r*(1+r*(1.0/2+r*(1.0/6+r*(1.0/24+r*(1.0/120+r*(1.0/720))))))
	return p * math.Float32frombits(uint32(n+127)<<23)
}
