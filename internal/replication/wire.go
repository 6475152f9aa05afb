package replication

import (
	"context"
	"net"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgconn"
)

// wire is the connection as this package reads it.
type wire struct {
	*pgconn.PgConn

	raw atomic.Pointer[quiet] // nil: the system knows no quiet connections
}

// dialer makes connections quiet.
func (w *wire) dialer(dial pgconn.DialFunc) pgconn.DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		q, err := hush(conn)
		if err != nil || q == nil {
			return conn, nil //nolint:nilerr // the plain connection works as well, only not as fast
		}
		w.raw.Store(q)
		return q, nil
	}
}

// drained says whether everything that has arrived so far, to the best of our knowledge, has been received.
func (w *wire) drained() bool {
	q := w.raw.Load()
	return w.Frontend().ReadBufferLen() == 0 && (q == nil || q.buffered() == 0)
}
