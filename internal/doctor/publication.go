package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sluicebox/sluicebox/internal/replication"
	"github.com/sluicebox/sluicebox/internal/share"
)

const (
	publicationExists = "publication.exists"
	publicationTable  = "publication.table"
)

// publication is what is published.
type publication struct {
	insert, update, delete, truncate bool
	viaRoot                          bool
	all                              bool
	schemas                          bool // it is for all tables of a schema
	has                              bool // the outbox is in it
	partitioned                      bool // the outbox is
	filter                           string
	columns                          bool // a list of columns limits it
	others                           int64
	other                            string // one of them, as SQL writes it
}

func publicationChecks() []check {
	on := []string{postgresReachable, publicationExists, publicationTable}
	return []check{
		{publicationExists, on[:1], findPublication, told},
		{publicationTable, on[:2], publishedTable, told},
		{"publication.insert", on[:2], publishedInsert, told},
		{"publication.only_insert", on[:2], publishedMore, anytime},
		{"publication.row_filter", on, rowFilter, told},
		{"publication.column_list", on, columnList, anytime},
		{"publication.partition_root", on, partitionRoot, told},
		{"publication.other_tables", on, otherTables, anytime},
	}
}

func (l *look) publicationName() string { return identifier(l.config.Replication.Publication) }

func findPublication(ctx context.Context, l *look) Finding {
	p := &l.publication
	err := l.pg.QueryRow(ctx, `
SELECT p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot, p.puballtables,
       p.puballtables OR r.oid IS NOT NULL OR EXISTS (SELECT FROM pg_publication_namespace n WHERE n.pnpubid = p.oid AND n.pnnspid = c.relnamespace),
       EXISTS (SELECT FROM pg_publication_namespace n WHERE n.pnpubid = p.oid), coalesce(c.relkind = 'p', false), coalesce(pg_get_expr(r.prqual, r.prrelid), ''), r.prattrs IS NOT NULL,
       others.n, coalesce(others.one, '')
FROM pg_publication p
CROSS JOIN LATERAL (
    SELECT count(*) AS n, min(g.relid::regclass::text) AS one FROM pg_get_publication_tables(p.pubname) g
    WHERE NOT EXISTS (SELECT FROM pg_partition_ancestors(g.relid) a WHERE a.relid = to_regclass($2)) AND g.relid <> to_regclass($2)) others
LEFT JOIN pg_class c ON c.oid = to_regclass($2)
LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid
WHERE p.pubname = $1`, l.config.Replication.Publication, l.outboxName()).Scan(
		&p.insert, &p.update, &p.delete, &p.truncate, &p.viaRoot, &p.all, &p.has, &p.schemas, &p.partitioned, &p.filter, &p.columns, &p.others, &p.other)
	if errors.Is(err, pgx.ErrNoRows) {
		return fail("publication "+l.config.Replication.Publication, "run `cdc migrate` as the owner of the outbox", "there is no such publication in this database")
	}
	if err != nil {
		return unknown(err)
	}
	return ok("%s", l.config.Replication.Publication)
}

func publishedTable(_ context.Context, l *look) Finding {
	if !l.publication.has {
		return fail("the outbox in the publication", "ALTER PUBLICATION "+l.publicationName()+" ADD TABLE "+l.outboxName(), "the publication lacks %s", l.outboxName())
	}
	return ok("%s", l.outboxName())
}

func publishedInsert(_ context.Context, l *look) Finding {
	if !l.publication.insert {
		return fail("insert", "ALTER PUBLICATION "+l.publicationName()+" SET (publish = 'insert')", "inserts are not published: no event is streamed")
	}
	return ok("published")
}

func publishedMore(_ context.Context, l *look) Finding {
	var more []string
	for _, what := range []struct {
		name string
		is   bool
	}{{"updates", l.publication.update}, {"deletes", l.publication.delete}, {"truncates", l.publication.truncate}} {
		if what.is {
			more = append(more, what.name)
		}
	}
	if len(more) > 0 {
		return warn("nothing but inserts", "ALTER PUBLICATION "+l.publicationName()+" SET (publish = 'insert')",
			"%s are published too: each mark that the daemon sets is streamed back to it, and costs throughput", strings.Join(more, " and "))
	}
	return ok("inserts alone")
}

// tableAgain publishes all columns of the outbox, without touching other tables.
func (l *look) tableAgain() string {
	where := ""
	if mine := l.config.Replication.Share; !mine.Whole() {
		where = " WHERE (" + mine.Where("id") + ")"
	}
	alter := "ALTER PUBLICATION " + l.publicationName()
	return fmt.Sprintf("%[1]s DROP TABLE %[2]s; %[1]s ADD TABLE %[2]s%[3]s", alter, l.outboxName(), where)
}

// rowFilter wants the share of the outbox that this stream carries, or no filter if that is all.
func rowFilter(_ context.Context, l *look) Finding {
	filter := l.publication.filter
	has, known := share.OfFilter(filter)
	if want := l.config.Replication.Share; !known || has != want {
		wrong := &replication.FilterError{Config: l.config.Replication, Filter: filter}
		return fail("the rows that CDC_SHARE names, or all", wrong.Hint(), "%v", wrong)
	}
	if filter == "" {
		return ok("none")
	}
	return ok("%s", filter)
}

func columnList(_ context.Context, l *look) Finding {
	if l.publication.columns {
		return fail("all columns", l.tableAgain(), "only some columns are published")
	}
	return ok("none")
}

func partitionRoot(_ context.Context, l *look) Finding {
	if l.publication.partitioned && !l.publication.viaRoot {
		return fail("publish_via_partition_root", "ALTER PUBLICATION "+l.publicationName()+" SET (publish_via_partition_root = true)",
			"rows of partitions are streamed under the partitions' names, and would be passed over")
	}
	if !l.publication.partitioned {
		return ok("the outbox is not partitioned")
	}
	return ok("rows come under the outbox's name")
}

func otherTables(_ context.Context, l *look) Finding {
	if n := l.publication.others; n > 0 || l.publication.all {
		mend := "ALTER PUBLICATION " + l.publicationName() + " DROP TABLE " + l.publication.other
		if l.publication.all || l.publication.schemas { // no table can be taken out of those
			mend = "DROP PUBLICATION " + l.publicationName() + ", then run `cdc migrate`"
		}
		return warn("the outbox alone", mend, "%d other tables are published: their rows are decoded, sent and thrown away", n)
	}
	return ok("none")
}
