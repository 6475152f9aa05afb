package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/mail"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// NewUser is the body of POST /users. It is also exactly what the event of the user holds.
type NewUser struct {
	Email     string `json:"email" format:"email" minLength:"3" maxLength:"254" doc:"Unique, whatever the case of its letters." example:"ada@example.com"`
	FirstName string `json:"first_name" minLength:"1" maxLength:"200" doc:"Not blank." example:"Ada"`
	LastName  string `json:"last_name" minLength:"1" maxLength:"200" doc:"Not blank." example:"Lovelace"`
}

const (
	maxEmail = 254 // characters: what SMTP can carry (RFC 5321)
	maxName  = 200 // characters
)

// decodeUser reads and checks a body. It returns [malformed], or [invalid] with every bad field. Not huma but this does it, because
// huma takes "EMAIL" for "email" and "Ada <ada@example.com>" for an e-mail, and names what is missing only in its message.
//
// Spaces around a value are removed.
func decodeUser(body []byte) (NewUser, error) {
	if !utf8.Valid(body) {
		return NewUser{}, malformed{"the body is not UTF-8"}
	}
	members, problems, err := decodeObject(body)
	if err != nil {
		return NewUser{}, err
	}
	var user NewUser
	for _, f := range []struct {
		name   string
		max    int
		target *string
	}{{"email", maxEmail, &user.Email}, {"first_name", maxName, &user.FirstName}, {"last_name", maxName, &user.LastName}} {
		value, found := members[f.name]
		delete(members, f.name)
		text, reason := checkText(value, found, f.max)
		if reason == "" && f.target == &user.Email {
			reason = checkEmail(text)
		}
		if reason != "" {
			problems = append(problems, field("body."+f.name, reason))
		}
		*f.target = text
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		problems = append(problems, field("body."+name, "is not a known field"))
	}
	if len(problems) > 0 {
		return NewUser{}, problems
	}
	return user, nil
}

// decodeObject returns the members of a JSON object, and a problem for each name that is there twice: which of the two values counts
// would depend on who reads it.
func decodeObject(body []byte) (members map[string]json.RawMessage, problems invalid, err error) {
	var whole any
	if err := json.Unmarshal(body, &whole); err != nil {
		return nil, nil, malformed{"the body is not JSON: " + err.Error()}
	}
	if _, ok := whole.(map[string]any); !ok {
		return nil, nil, invalid{field("body", "is not an object")}
	}
	members = map[string]json.RawMessage{}
	decoder := json.NewDecoder(bytes.NewReader(body))
	_, err = decoder.Token() // the opening brace
	for err == nil && decoder.More() {
		var name json.Token
		var value json.RawMessage
		if name, err = decoder.Token(); err == nil {
			err = decoder.Decode(&value)
		}
		text, _ := name.(string)
		if _, twice := members[text]; twice {
			problems = append(problems, field("body."+text, "is there twice"))
		}
		members[text] = value
	}
	if err != nil {
		return nil, nil, malformed{"the body is not JSON: " + err.Error()}
	}
	return members, problems, nil
}

// checkText returns the text of a member, without spaces around it, or the reason why it cannot be taken.
func checkText(value json.RawMessage, found bool, limit int) (text, reason string) {
	if !found {
		return "", "is missing"
	}
	var pointer *string
	if err := json.Unmarshal(value, &pointer); err != nil || pointer == nil {
		return "", "is not a string"
	}
	text = strings.TrimSpace(*pointer)
	switch {
	case strings.ContainsRune(text, utf8.RuneError): // what half of a surrogate pair has become
		return "", "has half of a surrogate pair, or the character U+FFFD"
	case text == "":
		return "", "is blank"
	case utf8.RuneCountInString(text) > limit:
		return "", fmt.Sprintf("has more than %d characters", limit)
	case strings.ContainsFunc(text, unicode.IsControl):
		return "", "has a control character" // NUL is one, which Postgres cannot store
	default:
		return text, ""
	}
}

func checkEmail(text string) (reason string) {
	// A parsed address differs from the text if that has a name, a comment or brackets around the address.
	if address, err := mail.ParseAddress(text); err != nil || address.Address != text {
		return "is not an e-mail address"
	}
	return ""
}
