package replication

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// FuzzTake feeds messages of the replication connection: an error is fine, a panic is not, and only the codes that say so mean that the
// slot has lost something.
func FuzzTake(f *testing.F) {
	const at = "2026-01-02 03:04:05+00"
	xlog := func(m []byte) []byte { return append(append([]byte{'w'}, make([]byte, 24)...), m...) }
	keepalive := binary.BigEndian.AppendUint64([]byte{'k'}, 200)
	keepalive = append(binary.BigEndian.AppendUint64(keepalive, 0), 1)
	f.Add(uint8(0), "", xlog(begin(1)))
	f.Add(uint8(0), "", xlog(insert(7, values("1", at)...)))
	f.Add(uint8(0), "", keepalive)
	f.Add(uint8(0), "", []byte("w"))
	f.Add(uint8(1), objectNotInState, []byte("can no longer get changes from replication slot"))
	f.Add(uint8(1), undefinedObject, []byte("publication does not exist"))
	f.Add(uint8(1), "57P01", []byte("terminating connection"))
	f.Add(uint8(2), skippedPublication, []byte("skipped loading publication"))
	f.Add(uint8(2), "00000", []byte("hello"))
	f.Add(uint8(3), "", []byte{})
	f.Fuzz(func(t *testing.T, kind uint8, code string, data []byte) {
		s := &Stream{decode: newDecoder("public", "event_outbox")}
		feed(t, s.decode, begin(100), relation(7, "public", names...))
		var message pgproto3.BackendMessage = &pgproto3.CopyDone{}
		lossy := false
		switch kind {
		case 0:
			message = &pgproto3.CopyData{Data: data}
		case 1:
			message = &pgproto3.ErrorResponse{Code: code, Message: string(data)}
			lossy = code == objectNotInState || code == undefinedObject || code == limitExceeded
		case 2:
			message = &pgproto3.NoticeResponse{Code: code, Message: string(data)}
			lossy = code == skippedPublication
		}
		_, err := s.take(message)
		var gap *GapError
		if kind > 0 && errors.As(err, &gap) != lossy {
			t.Errorf("kind %d, code %q: %v", kind, code, err)
		}
		if err == nil && kind == 0 && len(s.chunk) > 1 {
			t.Errorf("one message gives %d events", len(s.chunk))
		}
	})
}
