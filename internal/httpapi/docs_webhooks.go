package httpapi

import (
	"net/http"

	"zimage/internal/problem"
)

const (
	sampleWebhook  = "whe_06f3k2m9v0q8r5w1x4y7z2a6bc"
	sampleEvent    = "evt_06f3k2m9v0q8r5w1x4y7z2a6bc"
	sampleSigning  = "whsec_…"
	sampleDelivery = "whd_06f3k2m9v0q8r5w1x4y7z2a6bc"
)

var (
	sampleHook = webhookView{ID: sampleWebhook, URL: "https://example.org/hooks/zimage", Description: "shop", Events: []string{"generation.succeeded", "generation.failed"},
		Status: "enabled", CreatedAt: sampleAt, ChangedAt: sampleAt}
	sampleTold = deliveryView{ID: sampleDelivery, WebhookID: sampleWebhook, EventID: sampleEvent, Type: "generation.succeeded", Ref: sampleGeneration, State: "delivered",
		CreatedAt: sampleAt, EndedAt: pointer(sampleAt), Attempts: []attemptView{{Attempt: 1, At: sampleAt, TookMS: 87, Status: 204}}}

	webhooksDoc = doc{
		id: "list-webhooks", tag: tagWebhooks, summary: "List webhooks",
		description: "Yours, newest first, 20 at most.",
		answers:     ok("The webhooks.", webhooksView{Data: []webhookView{sampleHook}}),
	}
	createWebhookDoc = doc{
		id: "create-webhook", tag: tagWebhooks, summary: "Make a webhook",
		description: "Every event that it is told of is a POST to its address, signed by the rules of Standard Webhooks: `webhook-id`, `webhook-timestamp`, `webhook-signature`. " +
			"What is not answered with 2xx within 15 s is sent again, nine times in about three days, always under the same `webhook-id`. The secret is shown this once. With `include_prompt` a key needs the scope `read`, too.",
		request: addWebhookBody{URL: sampleHook.URL, Description: sampleHook.Description, Events: sampleHook.Events},
		answers: ok("Made.", newWebhookView{Secret: sampleSigning, Webhook: sampleHook}, "Location"),
		codes:   []problem.Code{problem.Conflict},
	}
	webhookDoc = doc{
		id: "get-webhook", tag: tagWebhooks, summary: "Look at a webhook",
		description: "Without its secret.",
		answers:     ok("The webhook.", sampleHook),
		codes:       []problem.Code{problem.NotFound},
	}
	updateWebhookDoc = doc{
		id: "update-webhook", tag: tagWebhooks, summary: "Change a webhook",
		description: "What is left out stays. Enabling one that was disabled begins anew. To set `include_prompt`, or another `url` of one that has it, a key needs the scope `read`, too.",
		request:     updateWebhookBody{Enabled: pointer(true)},
		answers:     ok("As it is now.", sampleHook),
		codes:       []problem.Code{problem.NotFound},
	}
	deleteWebhookDoc = doc{
		id: "delete-webhook", tag: tagWebhooks, summary: "Delete a webhook",
		description: "With the log of its deliveries. What was still to be told is not.",
		answers:     none("Deleted."),
		codes:       []problem.Code{problem.NotFound},
	}
	rotateWebhookDoc = doc{
		id: "rotate-webhook-secret", tag: tagWebhooks, summary: "Change a webhook's secret",
		description: "Old and new one both sign for 24 hours; of several changes within that time the last two. The new one is shown this once.",
		answers:     ok("Changed.", newWebhookView{Secret: sampleSigning, Webhook: sampleHook}),
		codes:       []problem.Code{problem.NotFound},
	}
	onceSecretDoc = doc{
		id: "get-webhook-secret", tag: tagWebhooks, summary: "Read the secret for single generations",
		description: "It signs what goes to a `webhook_url` that was given with a generation.",
		answers:     ok("The secret.", onceSecretView{ID: sampleWebhook, Secret: sampleSigning}),
	}
	rotateOnceDoc = doc{
		id: "rotate-single-secret", tag: tagWebhooks, summary: "Change the secret for single generations",
		description: "Old and new one both sign for 24 hours.",
		answers:     ok("Changed.", onceSecretView{ID: sampleWebhook, Secret: sampleSigning, OldUntil: pointer(sampleAt)}),
	}
	testWebhookDoc = doc{
		id: "test-webhook", tag: tagWebhooks, summary: "Send a test event",
		description: "An event of type `webhook.test`, delivered as any other. Tests and replays are limited to 60 at once and one a second after that.",
		answers:     []good{{status: http.StatusAccepted, description: "It is on its way.", body: sampleTold}},
		codes:       []problem.Code{problem.NotFound, problem.Conflict},
	}
	deliveriesDoc = doc{
		id: "list-deliveries", tag: tagWebhooks, summary: "List deliveries",
		description: "What was told, or is to be, with each attempt; kept for 30 days.",
		answers:     ok("A page.", deliveriesView{Data: []deliveryView{sampleTold}, NextCursor: sampleDelivery}),
		codes:       []problem.Code{problem.NotFound, problem.InvalidRequest},
	}
	replayFailedDoc = doc{
		id: "replay-failed", tag: tagWebhooks, summary: "Send again what failed",
		description: "Everything since a time that failed, or waits for another attempt after a failure, or was lost; 5,000 at once. While the webhook is left alone they wait.",
		answers:     []good{{status: http.StatusAccepted, description: "They are on their way.", body: replayedView{Replayed: 17}}},
		codes:       []problem.Code{problem.NotFound, problem.Conflict, problem.InvalidRequest},
	}
	replayDoc = doc{
		id: "replay-delivery", tag: tagWebhooks, summary: "Send one again",
		description: "Whatever came of it, under the same `webhook-id`. While the webhook is left alone it waits.",
		answers:     []good{{status: http.StatusAccepted, description: "It is on its way.", body: sampleTold}},
		codes:       []problem.Code{problem.NotFound, problem.Conflict},
	}
	webhookEventsDoc = doc{
		id: "list-events", tag: tagWebhooks, summary: "Catch up with events",
		description: "All that happened behind an event that you know, the oldest first. Events are kept for 30 days while the account has a webhook, also a disabled one. None comes to stand before one that was listed.",
		answers:     ok("The events.", toldEventsView{Data: []toldEventView{{ID: sampleEvent, Type: "generation.succeeded", Ref: sampleGeneration, Sequence: 4, At: sampleAt}}}),
		codes:       []problem.Code{problem.InvalidRequest},
	}
)
