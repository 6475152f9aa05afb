package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/pgurl"
)

// delivery are the settings of the daemon.
type delivery struct {
	stream

	ReplicationURL cli.Credential `env:"REPLICATION_DATABASE_URL" name:"replication-database-url" help:"Postgres for the replication connection, when its role is another one. Default: DATABASE_URL."`

	BatchMaxRows  int           `env:"CDC_BATCH_MAX_ROWS" default:"50000" min:"1" max:"1000000" help:"Rows that seal a batch."`
	BatchMaxBytes cli.Bytes     `env:"CDC_BATCH_MAX_BYTES" default:"16MiB" min:"1KiB" max:"128MiB" help:"Bytes that seal a batch: the memory that it takes until it is in ClickHouse, three times its contexts and some."`
	BatchMaxDelay time.Duration `env:"CDC_BATCH_MAX_DELAY" default:"1s" min:"1ms" max:"10m" help:"Age of its oldest event that seals a batch."`

	InsertDeadline time.Duration `env:"CDC_INSERT_DEADLINE" default:"5m" min:"1s" max:"1h" help:"How long ClickHouse accepts a planned batch, on its own clock. It fences inserts that were paused; after a failover of Postgres, delivery waits for that long."`
	OnPoison       string        `env:"CDC_ON_POISON" default:"quarantine" enum:"quarantine,halt" help:"What becomes of an event that ClickHouse can never take: quarantine puts it aside with the reason and goes on, halt ends the daemon."`
	PoisonShare    float64       `env:"CDC_POISON_SHARE" default:"0.01" min:"0" max:"1" help:"Share of a batch that may be put into quarantine. If more is refused, the table is taken to be wrong and the stream waits. Ten events always may."`
	MaxSlotWAL     cli.Bytes     `env:"CDC_MAX_SLOT_WAL" name:"max-slot-wal" default:"0" help:"WAL that may wait for this daemon, while ClickHouse is down for long, before the slot is dropped to keep Postgres's disk. Its events are read from the table later. 0: no limit."`
	Retention      time.Duration `env:"CDC_RETENTION" default:"0" help:"Age from which settled rows are removed from the outbox, at least 1m: 720h for 30 days. 0: never. Needs DELETE on the outbox."`

	AdminAddr       cli.Addr      `env:"CDC_ADMIN_ADDR" default:"127.0.0.1:8081" help:"Status page, metrics and health. The page may retry rows in quarantine only if this is an address of this machine alone, as 127.0.0.1: it asks for no password."`
	TakeoverAfter   time.Duration `env:"CDC_TAKEOVER_AFTER" default:"30s" min:"3s" max:"1h" help:"Silence of a leading daemon after which a standby takes over, even if its connections are still open. One that is killed is replaced at once."`
	ShutdownTimeout time.Duration `env:"CDC_SHUTDOWN_TIMEOUT" default:"25s" min:"1s" max:"1h" help:"How long a stop may take to deliver what was received."`
}

// Validate checks what the types of the settings can't.
func (d *delivery) Validate() error {
	problems := []error{d.stream.Validate()}
	if url := d.ReplicationURL.Now(); url != "" {
		if err := pgurl.Problem(url); err != nil {
			problems = append(problems, fmt.Errorf("REPLICATION_DATABASE_URL: %w", err))
		}
	}
	// Less is a slip of the unit: nobody could look at what was just delivered, and each pass costs a write.
	if d.Retention != 0 && d.Retention < time.Minute {
		problems = append(problems, fmt.Errorf("CDC_RETENTION: %v is out of range, at least 1m, or 0 for never", d.Retention))
	}
	return errors.Join(problems...)
}

func (d *delivery) limits() batch.Limits {
	return batch.Limits{Rows: d.BatchMaxRows, Bytes: int(d.BatchMaxBytes), Delay: d.BatchMaxDelay}
}
