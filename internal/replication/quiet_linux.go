package replication

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// quiet is a connection that is read in large pieces and wakes nobody in between.
//
// Postgres sends each row by itself, a hundred thousand times a second. Each arrival on an ordinary connection wakes the runtime's
// network poller, and with it threads that look for work and find none: that cost more processor time than decoding and inserting
// together. So this one is not known to the poller. While data keep coming, its reader sleeps for a time in which they gather and that nobody
// notices; when none come, it waits in the kernel.
type quiet struct {
	fd          int
	born        time.Time // deadlines are reckoned from it, by the monotonic clock
	closed      atomic.Bool
	read, write side

	buf  []byte
	from atomic.Int64 // of what was read and not taken yet
	to   atomic.Int64
	last time.Time // when data last came
	few  bool      // less came than there is room for: the sender is not ahead

	local, remote net.Addr
}

// side is one direction of a connection.
type side struct {
	mu      sync.Mutex   // held while the descriptor is used
	by      atomic.Int64 // deadline, nanoseconds after quiet.born, at least 1; 0: none
	event   int          // an eventfd, which wakes the goroutine that waits
	waiting atomic.Bool
}

const (
	quietBuffer = 256 << 10
	// gather is how long the reader sleeps before it reads again: by a timer of the runtime, since a thread that sleeps in the kernel makes the
	// runtime look for it fifty thousand times a second. The buffers of a Unix socket hold some 200 rows, one millisecond of a busy walsender.
	gather = 500 * time.Microsecond
	// busy is how recently data must have come for more to be expected.
	busy = time.Millisecond
)

// hush takes a connection over. It returns nil for one that is none of the system's.
func hush(conn net.Conn) (*quiet, error) {
	source, ok := conn.(syscall.Conn)
	if !ok {
		return nil, nil
	}
	raw, err := source.SyscallConn()
	if err != nil {
		return nil, err
	}
	q := &quiet{born: time.Now(), buf: make([]byte, quietBuffer), local: conn.LocalAddr(), remote: conn.RemoteAddr()}
	var dupErr error
	if err := raw.Control(func(fd uintptr) { q.fd, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, dupErr
	}
	if q.read.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, errors.Join(err, unix.Close(q.fd))
	}
	if q.write.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, errors.Join(err, unix.Close(q.fd), unix.Close(q.read.event))
	}
	return q, conn.Close() // takes the descriptor that the poller knows away from it; ours stays
}

func (q *quiet) Read(p []byte) (int, error) {
	q.read.mu.Lock()
	defer q.read.mu.Unlock()
	if q.buffered() == 0 {
		if len(p) == 0 {
			return 0, nil
		}
		if err := q.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, q.buf[q.from.Load():q.to.Load()])
	q.from.Add(int64(n))
	return n, nil
}

// buffered is how many bytes were read and not taken yet.
func (q *quiet) buffered() int { return int(q.to.Load() - q.from.Load()) }

// fill reads what has come, or waits for it.
func (q *quiet) fill() error {
	if q.few && time.Since(q.last) < busy {
		time.Sleep(gather) //nolint:forbidigo // it is what this connection is for
	}
	for {
		if err := q.usable(&q.read); err != nil {
			return err
		}
		n, err := unix.Read(q.fd, q.buf)
		switch {
		case err == nil && n == 0:
			return io.EOF
		case err == nil:
			q.from.Store(0)
			q.to.Store(int64(n))
			q.last, q.few = time.Now(), n < len(q.buf)
			return nil
		case errors.Is(err, unix.EAGAIN):
			q.wait(unix.POLLIN, &q.read)
		case !errors.Is(err, unix.EINTR):
			return q.fail("read", err)
		}
	}
}

func (q *quiet) Write(p []byte) (written int, err error) {
	q.write.mu.Lock()
	defer q.write.mu.Unlock()
	for written < len(p) {
		if err := q.usable(&q.write); err != nil {
			return written, err
		}
		n, err := unix.SendmsgN(q.fd, p[written:], nil, nil, unix.MSG_NOSIGNAL)
		switch {
		case err == nil:
			written += n
		case errors.Is(err, unix.EAGAIN):
			q.wait(unix.POLLOUT, &q.write)
		case !errors.Is(err, unix.EINTR):
			return written, q.fail("write", err)
		}
	}
	return written, nil
}

// usable says why nothing may be tried any more.
func (q *quiet) usable(d *side) error {
	if q.closed.Load() {
		return net.ErrClosed
	}
	if at := d.by.Load(); at != 0 && int64(time.Since(q.born)) >= at {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// wait returns when the descriptor is ready, the deadline has passed or was changed, or the connection is closed. The caller looks which.
func (q *quiet) wait(events int16, d *side) {
	d.waiting.Store(true)
	defer d.waiting.Store(false)
	timeout := -1
	if at := d.by.Load(); at != 0 { // after waiting was set, so that a later change is told
		left := time.Duration(at) - time.Since(q.born)
		if left <= 0 {
			return
		}
		timeout = int((left + time.Millisecond - 1) / time.Millisecond)
	}
	if q.closed.Load() {
		return
	}
	fds := []unix.PollFd{{Fd: int32(q.fd), Events: events}, {Fd: int32(d.event), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, timeout); err == nil && n > 0 && fds[1].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(d.event, count[:]) // it was ready
	}
}

// wake makes who waits look again.
func (d *side) wake() {
	if d.waiting.Load() {
		_, _ = unix.Write(d.event, binary.NativeEndian.AppendUint64(nil, 1)) // if it is full, it wakes as well
	}
}

// Close wakes everybody and gives the descriptor back once nobody uses it.
func (q *quiet) Close() error {
	if q.closed.Swap(true) {
		return net.ErrClosed
	}
	q.read.wake()
	q.write.wake()
	q.read.mu.Lock()
	defer q.read.mu.Unlock()
	q.write.mu.Lock()
	defer q.write.mu.Unlock()
	return errors.Join(unix.Close(q.fd), unix.Close(q.read.event), unix.Close(q.write.event))
}

func (q *quiet) LocalAddr() net.Addr  { return q.local }
func (q *quiet) RemoteAddr() net.Addr { return q.remote }

func (q *quiet) SetDeadline(t time.Time) error {
	return errors.Join(q.SetReadDeadline(t), q.SetWriteDeadline(t))
}
func (q *quiet) SetReadDeadline(t time.Time) error  { return q.setDeadline(&q.read, t) }
func (q *quiet) SetWriteDeadline(t time.Time) error { return q.setDeadline(&q.write, t) }

func (q *quiet) setDeadline(d *side, t time.Time) error {
	if q.closed.Load() {
		return net.ErrClosed
	}
	at := int64(0)
	if !t.IsZero() {
		at = max(int64(t.Sub(q.born)), 1)
	}
	d.by.Store(at)
	d.wake()
	return nil
}

func (q *quiet) fail(what string, err error) error {
	return &net.OpError{Op: what, Net: q.remote.Network(), Source: q.local, Addr: q.remote, Err: os.NewSyscallError(what, err)}
}
