// Package replication reads one logical replication slot: publication and slot, then committed rows of the outbox in commit
// order, then acknowledgements. It knows nothing of batches and nothing of ClickHouse.
//
// One goroutine owns the replication connection. It decodes what arrives, hands chunks of events to [Stream.Events] and sends
// the server a status on its own clock, also while nobody takes the chunks: a slow consumer must not look like a dead one
// (FACTS P8). Not taking chunks is the backpressure; what waits in between is bounded in bytes.
package replication

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sluicebox/sluicebox/outbox"
)

// Kind says what an [Event] tells of.
type Kind uint8

// The kinds of events.
const (
	Insert Kind = iota // a committed row of the outbox
	Commit             // the end of a transaction that the server sent; all its rows came before
	Idle               // everything before LSN was sent, and no transaction is open
)

// Event is one thing that the stream tells.
type Event struct {
	Kind Kind
	Row  outbox.Row // of an Insert
	LSN  uint64     // of a Commit: its end; of an Idle: the server's position. Both may be acknowledged once all before is settled

	Committed int64 // of an Insert and a Commit: when the transaction was committed, in microseconds since 1970, by the server's clock
}

const (
	// statusInterval is how often the server hears from us. wal_sender_timeout defaults to 60 s and may be set lower; its third
	// must not be shorter than this.
	statusInterval = time.Second
	// deadAfter is how long the server may be silent although each status asks it for a reply. Half of wal_sender_timeout's default.
	deadAfter = 30 * time.Second
	// chunkEvents and chunkBytes bound a chunk; at most queued+2 chunks exist, so that is what bounds the memory.
	chunkEvents = 1024
	chunkBytes  = 1 << 20
	queued      = 2
	// chunkDelay is how long a chunk may wait for more events while its consumer is busy.
	chunkDelay = 10 * time.Millisecond
	// ioTimeout bounds a write to the connection, and each step of opening and closing one.
	ioTimeout = 10 * time.Second
)

// Stream is an open replication stream. Close it.
type Stream struct {
	conn   *wire
	decode *decoder
	out    chan []Event
	free   chan []Event  // chunks to fill again
	acked  atomic.Uint64 // what the consumer allows; the server is told on the next status
	cancel context.CancelFunc
	done   chan struct{} // closed when the goroutine has ended
	err    error         // why it ended; read after done

	// The goroutine's own:
	chunk      []Event
	chunkSize  int
	heard      time.Time // when the server was last heard
	nextStatus time.Time
	received   uint64 // the highest position the server has spoken of
}

// Start opens the stream of a slot at the position from: the server sends again every transaction that commits at or after
// it. Rows that were settled before are the caller's to skip. acked is what was acknowledged before.
//
// The error is a [*GapError] when the slot is lost, and wraps a *pgconn.PgError where the server gave one.
func Start(ctx context.Context, config Config, from, acked uint64) (*Stream, error) {
	conn, err := connect(ctx, config)
	if err != nil {
		return nil, err
	}
	start, cancelStart := context.WithTimeout(ctx, ioTimeout)
	defer cancelStart()
	err = pglogrepl.StartReplication(start, conn.PgConn, config.quotedSlot(), pglogrepl.LSN(from), pglogrepl.StartReplicationOptions{
		Mode:       pglogrepl.LogicalReplication,
		PluginArgs: []string{"proto_version '1'", "publication_names " + quoteList(config.Publication)},
	})
	if err != nil {
		closeConn(ctx, conn)
		return nil, lost(fmt.Errorf("start replication from slot %s: %w", config.Slot, err), SlotMissing)
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &Stream{
		conn:   conn,
		decode: newDecoder(config.Schema, config.Table),
		out:    make(chan []Event, queued),
		free:   make(chan []Event, queued+2),
		cancel: cancel,
		done:   make(chan struct{}),
		heard:  time.Now(),
	}
	s.acked.Store(acked)
	go func() {
		defer close(s.done)
		s.err = s.run(run)
		closeConn(ctx, conn)
	}()
	return s, nil
}

// Events gives chunks of events, in order, each with at least one, until [Stream.Reuse]. It is never closed; see [Stream.Done].
func (s *Stream) Events() <-chan []Event { return s.out }

// Reuse gives a chunk back whose events were copied. What they refer to stays as it is.
func (s *Stream) Reuse(chunk []Event) {
	select {
	case s.free <- chunk[:0]:
	default:
	}
}

// Done is closed when the stream has ended; [Stream.Err] then says why.
func (s *Stream) Done() <-chan struct{} { return s.done }

// Err is why the stream has ended. Only meaningful once Done is closed.
func (s *Stream) Err() error { return s.err }

// Ack lets the server forget everything before lsn, the end of a commit or a position of an Idle event. It never waits; the
// server is told with the next status, within a second or on Close.
func (s *Stream) Ack(lsn uint64) {
	for {
		old := s.acked.Load()
		if lsn <= old || s.acked.CompareAndSwap(old, lsn) {
			return
		}
	}
}

// Close tells the server the last acknowledgement, ends the stream and waits for its goroutine, at most a few seconds.
func (s *Stream) Close() {
	s.cancel()
	_ = s.conn.Conn().SetReadDeadline(time.Unix(1, 0)) // wakes the goroutine if it waits for the server
	<-s.done
}

// run reads the connection until ctx is done or the stream breaks.
func (s *Stream) run(ctx context.Context) error {
	for {
		now := time.Now()
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), s.sendStatus(ctx, now, false))
		}
		if !now.Before(s.nextStatus) {
			if now.Sub(s.heard) > deadAfter {
				return fmt.Errorf("replication connection: nothing heard from Postgres for %s", deadAfter)
			}
			if err := s.sendStatus(ctx, now, true); err != nil {
				return err
			}
		}
		wake := s.nextStatus
		if len(s.chunk) > 0 {
			wake = now.Add(chunkDelay)
		}
		if err := s.conn.Conn().SetReadDeadline(wake); err != nil {
			return fmt.Errorf("replication connection: %w", err)
		}
		if err := s.receive(ctx); err != nil {
			return err
		}
	}
}

// receive reads messages until the read deadline, and hands over what they carry.
func (s *Stream) receive(ctx context.Context) error {
	for {
		message, err := s.conn.Frontend().Receive()
		if err != nil {
			var timeout net.Error
			if !errors.As(err, &timeout) || !timeout.Timeout() {
				return fmt.Errorf("replication connection: %w", err)
			}
			if ctx.Err() == nil && len(s.chunk) > 0 {
				return s.flush(ctx)
			}
			return nil
		}
		was := len(s.chunk)
		reply, err := s.take(message)
		if err != nil {
			return err
		}
		if len(s.chunk) >= chunkEvents || s.chunkSize >= chunkBytes || (s.ended() && len(s.out) < cap(s.out) && s.conn.drained()) {
			if err := s.flush(ctx); err != nil {
				return err
			}
		}
		// Statuses and deadlines need the clock, which is too dear to read at each message: it is read when a chunk begins or ends.
		if reply || (was == 0) != (len(s.chunk) == 0) || len(s.chunk) == 0 {
			s.heard = time.Now()
			if reply {
				if err := s.sendStatus(ctx, s.heard, false); err != nil {
					return err
				}
			}
			return nil
		}
	}
}

// ended says whether the chunk ends with something other than a row: there is no sense in waiting for its neighbours.
func (s *Stream) ended() bool {
	return len(s.chunk) > 0 && s.chunk[len(s.chunk)-1].Kind != Insert
}

// take reads one message of the connection. reply says that the server wants a status at once.
func (s *Stream) take(message pgproto3.BackendMessage) (reply bool, err error) {
	switch m := message.(type) {
	case *pgproto3.CopyData:
		return s.copyData(m.Data)
	case *pgproto3.ErrorResponse:
		return false, lost(fmt.Errorf("replication stream: %w", pgconn.ErrorResponseToPgError(m)), Publication)
	case *pgproto3.NoticeResponse:
		if m.Code == skippedPublication {
			return false, &GapError{Kind: Publication, Reason: "Postgres skipped changes: " + m.Message}
		}
	case *pgproto3.CopyDone:
		return false, errors.New("replication stream: ended by Postgres")
	}
	return false, nil
}

func (s *Stream) copyData(data []byte) (reply bool, err error) {
	if len(data) == 0 {
		return false, errors.New("replication stream: empty message")
	}
	switch data[0] {
	case pglogrepl.XLogDataByteID:
		xlog, err := pglogrepl.ParseXLogData(data[1:])
		if err != nil {
			return false, fmt.Errorf("replication stream: %w", err)
		}
		event, ok, err := s.decode.decode(xlog.WALData)
		if err != nil || !ok {
			return false, err
		}
		s.received = max(s.received, uint64(xlog.WALStart), event.LSN)
		s.chunk = append(s.chunk, event)
		s.chunkSize += len(xlog.WALData)
		return false, nil
	case pglogrepl.PrimaryKeepaliveMessageByteID:
		keepalive, err := pglogrepl.ParsePrimaryKeepaliveMessage(data[1:])
		if err != nil {
			return false, fmt.Errorf("replication stream: %w", err)
		}
		s.received = max(s.received, uint64(keepalive.ServerWALEnd))
		if s.decode.commit == 0 { // inside a transaction the position says nothing yet
			s.chunk = append(s.chunk, Event{Kind: Idle, LSN: uint64(keepalive.ServerWALEnd)})
		}
		return keepalive.ReplyRequested, nil
	}
	return false, fmt.Errorf("replication stream: unknown message %q", data[0])
}

// flush hands the chunk over. While nobody takes it, the server keeps hearing from us.
func (s *Stream) flush(ctx context.Context) error {
	for {
		status := time.NewTimer(time.Until(s.nextStatus))
		select {
		case s.out <- s.chunk:
			status.Stop()
			s.chunkSize = 0
			select {
			case s.chunk = <-s.free:
			default:
				s.chunk = nil
			}
			return nil
		case <-ctx.Done():
			status.Stop()
			return nil // run sees it
		case now := <-status.C:
			s.heard = now // not reading, so silence proves nothing
			if err := s.sendStatus(ctx, now, false); err != nil {
				return err
			}
		}
	}
}

// sendStatus tells the server how far we are: what was received, and what it may forget.
func (s *Stream) sendStatus(ctx context.Context, now time.Time, askReply bool) error {
	s.nextStatus = now.Add(statusInterval)
	acked := s.acked.Load()
	if acked == 0 {
		// Position 0 would mean "all that was received" to the client library (FACTS P17), and lets the server forget it.
		return errors.New("replication stream: no acknowledged position is known")
	}
	if err := s.conn.Conn().SetWriteDeadline(now.Add(ioTimeout)); err != nil {
		return fmt.Errorf("replication connection: %w", err)
	}
	err := pglogrepl.SendStandbyStatusUpdate(ctx, s.conn.PgConn, pglogrepl.StandbyStatusUpdate{
		WALWritePosition: pglogrepl.LSN(max(s.received, acked)),
		WALFlushPosition: pglogrepl.LSN(acked),
		WALApplyPosition: pglogrepl.LSN(acked),
		ClientTime:       now,
		ReplyRequested:   askReply,
	})
	if err != nil {
		return fmt.Errorf("send a status to Postgres: %w", err)
	}
	return nil
}
