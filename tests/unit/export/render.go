// Reads cases from standard input and writes what Go's own text/template makes of each: Ollama's way, without Ollama.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

type chat struct {
	Template, System string
	Messages         []message
}

func main() {
	var chats []chat
	if err := json.NewDecoder(os.Stdin).Decode(&chats); err != nil {
		panic(err)
	}
	var prompts []string
	for _, c := range chats {
		var prompt strings.Builder
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(c.Template))
		if err := parsed.Execute(&prompt, map[string]any{"System": c.System, "Messages": c.Messages}); err != nil {
			panic(err)
		}
		prompts = append(prompts, prompt.String())
	}
	json.NewEncoder(os.Stdout).Encode(prompts)
}
