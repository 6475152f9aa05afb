package doctor

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/sluicebox/sluicebox/internal/cli"
)

func targetDataChecks() []check {
	on := []string{clickhouseReachable, targetExists, targetColumns}
	return []check{
		{"target.fsync", on[:2], targetFsync, anytime},
		{"target.window_size", on, windowSize, anytime},
		{"target.parts", on[:2], parts, anytime},
		{"target.mutations", on[:2], mutations, anytime},
		{"target.views", on[:2], views, anytime},
		{"clickhouse.disk", on[:2], clickhouseDisk, anytime},
	}
}

func code(err error) int32 {
	if refused, is := errors.AsType[*clickhouse.Exception](err); is {
		return refused.Code
	}
	return 0
}

// tableSetting is a setting of the table: its own, or the server's.
func (l *look) tableSetting(ctx context.Context, name string) (string, error) {
	if own := regexp.MustCompile(`\b` + name + ` = '?(\w+)`).FindStringSubmatch(l.target.settings); own != nil {
		return own[1], nil
	}
	var value string
	err := l.ch.QueryRow(ctx, `SELECT any(value) FROM system.merge_tree_settings WHERE name = ?`, name).Scan(&value)
	return value, err
}

func targetFsync(ctx context.Context, l *look) Finding {
	if l.replicated() {
		return skip("replicas have copies")
	}
	value, err := l.tableSetting(ctx, "fsync_after_insert")
	if err != nil {
		return unknown(err)
	}
	if value != "1" && value != "true" {
		return warn("fsync_after_insert = 1", "ALTER TABLE "+l.targetSQL()+" MODIFY SETTING fsync_after_insert = 1, fsync_part_directory = 1",
			"inserts are acknowledged before they are on disk: a power cut can lose events that are processed")
	}
	return ok("on")
}

func (l *look) replicated() bool {
	return strings.HasPrefix(l.target.engine, "Replicated") || strings.HasPrefix(l.target.engine, "Shared")
}

// windowSize asks whether a token is remembered for longer than an insert may be on its way.
func windowSize(_ context.Context, l *look) Finding {
	const rate = 10 // inserts a second, as many as a daemon makes when batches are small
	window := l.target.seen.Window
	if window == 0 {
		return skip("there is no window")
	}
	need := uint64(rate * l.config.InsertDeadline.Seconds())
	if window < need {
		return warn(fmt.Sprintf("%d inserts, or a CDC_INSERT_DEADLINE of %d s", need, window/rate),
			fmt.Sprintf("ALTER TABLE %s MODIFY SETTING non_replicated_deduplication_window = %d", l.targetSQL(), need),
			"the tokens of %d inserts are remembered, which %d inserts a second use up in less than CDC_INSERT_DEADLINE (%s)", window, rate, l.config.InsertDeadline)
	}
	return ok("%d inserts, for a deadline of %s", window, l.config.InsertDeadline)
}

func parts(ctx context.Context, l *look) Finding {
	most, _, err := l.sink.Survey(ctx)
	if err != nil {
		return unknown(err)
	}
	text, err := l.tableSetting(ctx, "parts_to_throw_insert")
	if err != nil {
		return unknown(err)
	}
	limit, err := strconv.ParseInt(text, 10, 64)
	if err != nil || limit == 0 {
		return ok("%d in one partition, no limit", most)
	}
	switch {
	case most*10 >= limit*9:
		return fail("merges that keep up", "raise CDC_BATCH_MAX_DELAY, and look into system.merges and system.mutations of ClickHouse",
			"%d parts in one partition; from %d on ClickHouse refuses inserts", most, limit)
	case most*4 >= limit:
		return warn("merges that keep up", "raise CDC_BATCH_MAX_DELAY, and look into system.merges and system.mutations of ClickHouse",
			"%d parts in one partition; from %d on ClickHouse refuses inserts", most, limit)
	}
	return ok("%d in one partition, of %d", most, limit)
}

// mutations tells of none what it does, nor why it fails: both may hold values of events, and this is logged.
func mutations(ctx context.Context, l *look) Finding {
	const oldest = 10 * time.Minute
	var id, code string
	var failed, old uint64
	database, table := l.targetName()
	err := l.ch.QueryRow(ctx, `WITH latest_fail_reason != '' AS fails, create_time < now() - ? AS is_old
SELECT countIf(fails), countIf(is_old), if(countIf(fails) > 0, anyIf(mutation_id, fails), anyIf(mutation_id, is_old)),
    anyIf(extract(latest_fail_reason, 'Code: (\\d+)'), fails)
FROM system.mutations WHERE database = ? AND table = ? AND NOT is_done`, uint64(oldest.Seconds()), database, table).Scan(&failed, &old, &id, &code)
	if err != nil {
		return unknown(err)
	}
	mend := "KILL MUTATION WHERE database = " + text(database) + " AND table = " + text(table) + " AND mutation_id = " + text(id)
	switch {
	case failed > 0:
		return warn("none that fails", mend, "mutation %s fails again and again with code %s, and holds up merges; system.mutations says what it does, and why it fails", id, code)
	case old > 0:
		return warn("none for long", mend, "%d mutations are not done after %s", old, oldest)
	}
	return ok("none is stuck")
}

// text writes a text as ClickHouse's SQL does.
func text(value string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + "'"
}

// name writes a name as ClickHouse's SQL does.
func name(value string) string {
	return "`" + strings.NewReplacer(`\`, `\\`, "`", "\\`").Replace(value) + "`"
}

// views are what ClickHouse derives from each insert. A batch that is sent again is dropped in the table by its token; a view's own table
// must have a window to drop it, too (FACTS C7). The table's own row names its views also to a user who does not see them.
func views(ctx context.Context, l *look) Finding {
	database, table := l.targetName()
	rows, err := l.ch.Query(ctx, `
SELECT d.1, d.2, v.engine, v.create_table_query, toString(v.uuid)
FROM (SELECT arrayJoin(arrayZip(dependencies_database, dependencies_table)) AS d FROM system.tables WHERE database = ? AND name = ?) t
LEFT JOIN (SELECT database, name, engine, create_table_query, uuid FROM system.tables) v ON v.database = t.d.1 AND v.name = t.d.2`, database, table)
	if err != nil {
		return unknown(err)
	}
	defer func() { _ = rows.Close() }() // rows.Err tells
	n, unseen, weak, fill := 0, "", "", ""
	for rows.Next() {
		var in, view, engine, create, uuid string
		if err := rows.Scan(&in, &view, &engine, &create, &uuid); err != nil {
			return unknown(err)
		}
		if engine != "" && engine != "MaterializedView" {
			continue
		}
		n++
		fills, seen, err := l.viewTarget(ctx, in, view, create, uuid)
		switch {
		case err != nil:
			return unknown(err)
		case engine == "" || !seen:
			unseen = name(in) + "." + name(view)
		case fills != "":
			weak, fill = fills, view
		}
	}
	if err := rows.Err(); err != nil {
		return unknown(err)
	}
	switch {
	case weak != "":
		return warn("a deduplication window of its own", "ALTER TABLE "+weak+" MODIFY SETTING non_replicated_deduplication_window = 10000",
			"%s fills %s, which has no deduplication window: a batch that is sent again is counted twice there", fill, weak)
	case unseen != "":
		return skip("%s does not see the view %s, or what it fills; GRANT SHOW TABLES, SHOW COLUMNS on both shows them", l.warehouse.user, unseen)
	case n == 0:
		return ok("none")
	}
	return ok("%d, with windows", n)
}

// ident is a name as ClickHouse prints it.
const ident = "(?:`((?:[^`\\\\]|\\\\.)*)`|([A-Za-z_][A-Za-z0-9_]*))"

// viewTo matches what a view that was created with TO fills, which follows its own name at once.
var viewTo = regexp.MustCompile("^CREATE MATERIALIZED VIEW " + ident + "\\." + ident + "(?: REFRESH .*?)? TO " + ident + "\\." + ident + "(?:[ (]|$)")

// viewTarget returns the table that a view fills if that table has no window; seen is false if this user does not see it.
func (l *look) viewTarget(ctx context.Context, in, view, create, uuid string) (fills string, seen bool, err error) {
	database, table := in, ".inner_id."+uuid
	if uuid == "00000000-0000-0000-0000-000000000000" {
		table = ".inner." + view
	}
	if to := viewTo.FindStringSubmatch(create); to != nil {
		plain := strings.NewReplacer(`\\`, `\`, "\\`", "`", `\'`, "'")
		database, table = plain.Replace(to[5])+to[6], plain.Replace(to[7])+to[8]
	}
	var engine, settings string
	err = l.ch.QueryRow(ctx, `SELECT any(engine), any(engine_full) FROM system.tables WHERE database = ? AND name = ?`, database, table).Scan(&engine, &settings)
	switch {
	case err != nil || engine == "":
		return "", false, err
	case strings.HasPrefix(engine, "Replicated") || strings.HasPrefix(engine, "Shared"):
		return "", true, nil
	case regexp.MustCompile(`\bnon_replicated_deduplication_window = [1-9]`).MatchString(settings):
		return "", true, nil
	}
	return name(database) + "." + name(table), true, nil
}

// readDisk finds the fullest disk that the table may be on. Not every user may look.
func (l *look) readDisk(ctx context.Context) {
	t := &l.target
	var free, total uint64
	err := l.ch.QueryRow(ctx, `
SELECT argMin(name, free_space / total_space), argMin(free_space, free_space / total_space), argMin(total_space, free_space / total_space) FROM system.disks
WHERE total_space > 0 AND name IN (SELECT arrayJoin(disks) FROM system.storage_policies WHERE policy_name = ?)`, t.policy).Scan(&t.disk, &free, &total)
	if err == nil {
		t.free, t.total = bounded(free), bounded(total)
	}
}

func clickhouseDisk(_ context.Context, l *look) Finding {
	t := &l.target
	const little = 5 // percent
	const least = 1 << 30
	switch {
	case t.total == 0:
		return skip("no disk of the table tells this user its size")
	case t.free < least:
		return fail("space for events", "make room on disk "+t.disk+" of ClickHouse", "disk %s has %s left of %s: inserts will be refused", t.disk, cli.Size(t.free), cli.Size(t.total))
	case t.free < t.total/100*little:
		return warn("a twentieth that is free", "make room on disk "+t.disk+" of ClickHouse", "disk %s has %s left of %s", t.disk, cli.Size(t.free), cli.Size(t.total))
	}
	return ok("%s left of %s", cli.Size(t.free), cli.Size(t.total))
}
