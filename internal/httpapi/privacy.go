package httpapi

import (
	"context"
	"time"

	"zimage/internal/privacy"
)

type policyOutput struct{ Body policyView }

func (a *API) getPolicy(context.Context, *struct{}) (*policyOutput, error) {
	return &policyOutput{Body: policy(a.rooms.Policy)}, nil
}

type policyView struct {
	Version    string          `json:"version" doc:"What consents are given to."`
	Date       string          `json:"date" format:"date" doc:"In force since."`
	Changes    string          `json:"changes" doc:"What has changed against the version before."`
	Page       string          `json:"page" format:"uri-reference" doc:"Where it can be read."`
	Controller controllerView  `json:"controller" doc:"Who answers for the data."`
	Contacts   contactsView    `json:"contacts" doc:"Mail addresses."`
	Authority  *authorityView  `json:"authority,omitempty" doc:"Where the operator is supervised, if one is named."`
	Complaint  string          `json:"complaint" doc:"How to complain to an authority."`
	Windows    windowsView     `json:"windows" doc:"How long things are kept, each as a number of days or months."`
	Purposes   []purposeView   `json:"purposes" nullable:"false" doc:"What data is used for."`
	Processors []processorView `json:"processors" nullable:"false" doc:"Other companies that handle data for the operator."`
	Security   securityView    `json:"security" doc:"How data is protected where this is served."`
	Analytics  bool            `json:"analytics" doc:"Whether an analytics provider is connected."`
}

type controllerView struct {
	Name    string `json:"name" doc:"Of the operator."`
	Address string `json:"address" doc:"By post."`
}

type contactsView struct {
	Privacy  string `json:"privacy" doc:"For questions and requests about personal data."`
	DPO      string `json:"data_protection_officer" doc:"The Data Protection Officer."`
	Security string `json:"security" doc:"For whoever finds a weakness."`
}

type authorityView struct {
	Name string `json:"name" doc:"Of the authority."`
	URL  string `json:"url" format:"uri" doc:"Its page."`
}

type windowsView struct {
	GeneratedContent string `json:"generated_content" doc:"Prompts, pictures and all that is made of them." example:"90 days"`
	Deletion         string `json:"deletion" doc:"Until a deletion is complete, backups included." example:"30 days"`
	Usage            string `json:"usage" doc:"Usage data." example:"12 months"`
	Support          string `json:"support" doc:"What people write to the operator." example:"24 months"`
	Backups          string `json:"backups" doc:"The age at which the last backup is destroyed." example:"28 days"`
}

type purposeView struct {
	ID    string `json:"id" doc:"As in consents and objections."`
	Name  string `json:"name" doc:"What it is called."`
	Words string `json:"words" doc:"What is done."`
	Basis string `json:"basis" enum:"contract,legal_obligation,consent,legitimate_interests" doc:"Why the law allows it."`
}

type processorView struct {
	ID           string   `json:"id" doc:"In the register."`
	Name         string   `json:"name" doc:"Of the company."`
	On           bool     `json:"on" doc:"Whether it may be given data: only under a contract with a date."`
	Purpose      string   `json:"purpose" doc:"What it does."`
	Purposes     []string `json:"purposes" nullable:"false" doc:"For which it is given data, by their ids."`
	Categories   []string `json:"categories" nullable:"false" doc:"Which data it gets."`
	Place        string   `json:"place" doc:"Where it handles the data."`
	Safeguard    string   `json:"safeguard" doc:"What protects the data there."`
	Contract     string   `json:"contract,omitempty" doc:"What binds it."`
	ContractDate string   `json:"contract_date,omitempty" format:"date" doc:"Of the contract."`
}

type securityView struct {
	Transit          string          `json:"transit" doc:"What hops between machines speak." example:"TLS 1.3"`
	Exceptions       []exceptionView `json:"exceptions" nullable:"false" doc:"Hops that are accepted without it."`
	VolumeEncryption string          `json:"volume_encryption,omitempty" doc:"What the operator declares of disks as a whole; left out: nothing."`
	EnginesKeep      string          `json:"engines_keep" enum:"nothing,memory,disk" doc:"The most that an image engine keeps of a request by itself."`
}

type exceptionView struct {
	Hop   string `json:"hop" doc:"As the settings name it."`
	Words string `json:"words" doc:"Between whom it is."`
}

func policy(s privacy.Statement) policyView {
	v := policyView{
		Version: s.Version, Date: s.Date.Format(time.DateOnly), Changes: s.Changes, Page: s.URL + "/privacy",
		Controller: controllerView(s.Controller), Contacts: contactsView(s.Contacts), Complaint: s.Complaint(),
		Windows: windowsView{
			GeneratedContent: s.Windows.GeneratedContent.String(), Deletion: s.Windows.Deletion.String(),
			Usage: s.Windows.Usage.String(), Support: s.Windows.Support.String(), Backups: s.Backups.String(),
		},
		Purposes: []purposeView{}, Processors: []processorView{},
		Security: securityView{Transit: "TLS 1.3", Exceptions: []exceptionView{}, VolumeEncryption: s.VolumeEncryption, EnginesKeep: s.EnginesKeep},
	}
	if s.Authority != (privacy.Authority{}) {
		v.Authority = &authorityView{Name: s.Authority.Name, URL: s.Authority.URL}
	}
	for _, p := range s.Purposes {
		v.Purposes = append(v.Purposes, purposeView{ID: string(p.ID), Name: p.Name, Words: p.Words, Basis: string(p.Basis)})
	}
	for _, p := range s.Processors {
		one := processorView{ID: p.ID, Name: p.Name, On: p.On(), Purpose: p.Purpose, Purposes: []string{}, Categories: p.Categories, Place: p.Place, Safeguard: p.Safeguard}
		for _, id := range p.Purposes {
			one.Purposes = append(one.Purposes, string(id))
		}
		if p.On() {
			one.Contract, one.ContractDate = p.Contract, p.ContractDate.Format(time.DateOnly)
		}
		v.Processors = append(v.Processors, one)
	}
	for _, e := range s.Exceptions() {
		v.Security.Exceptions = append(v.Security.Exceptions, exceptionView(e))
	}
	return v
}
