package embedded

import (
	"fmt"
	"net/url"
)

// As is the URL of a database with another user, who has the same password.
func As(address, user string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", fmt.Errorf("parse the URL of a database: %w", err)
	}
	password, _ := u.User.Password()
	u.User = url.UserPassword(user, password)
	return u.String(), nil
}
