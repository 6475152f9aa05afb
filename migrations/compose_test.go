package migrations_test

import (
	"encoding/xml"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicebox/sluicebox/migrations"
)

const composeFiles = "../deploy/compose/"

// usersFile is a configuration of ClickHouse.
type usersFile struct {
	Users struct {
		All []struct {
			XMLName  xml.Name
			Password string   `xml:"password"`
			Grants   []string `xml:"grants>query"`
		} `xml:",any"`
	} `xml:"users"`
}

func readUsers(t *testing.T, name string) (users usersFile) {
	t.Helper()
	if err := xml.Unmarshal([]byte(composeFile(t, name)), &users); err != nil {
		t.Fatal(err)
	}
	return users
}

func composeFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(composeFiles + name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// TestComposeUsers holds the users of docker-compose.yml's ClickHouse, which are in a file, against the roles that the script makes, and their
// passwords against the URLs of the programs.
func TestComposeUsers(t *testing.T) {
	t.Parallel()
	roles := []string{"sluicebox_owner", "sluicebox_daemon"}
	var names []string
	for _, user := range readUsers(t, "clickhouse-users.xml").Users.All {
		names = append(names, user.XMLName.Local)
		if diff := cmp.Diff(migrations.ClickHouseGrants(user.XMLName.Local, "app"), user.Grants); diff != "" {
			t.Errorf("%s: -script +file\n%s", user.XMLName.Local, diff)
		}
	}
	if !slices.Equal(names, roles) {
		t.Errorf("users %q, want %q", names, roles)
	}
	known := map[string]string{}
	for _, user := range readUsers(t, "secrets/clickhouse_users.xml").Users.All {
		known[user.XMLName.Local] = user.Password
	}
	for _, file := range []string{"owner_clickhouse_url", "cdc_clickhouse_url"} {
		address, err := url.Parse(composeFile(t, "secrets/"+file))
		if err != nil {
			t.Fatal(err)
		}
		if password, _ := address.User.Password(); password == "" || known[address.User.Username()] != password {
			t.Errorf("%s: the password of %s is another one in clickhouse_users.xml", file, address.User.Username())
		}
	}
}
