package view

// readme is the file README of the directory.
const readme = `The state of the data in this store. Everything here is made when it is read.

  summary           how the store is: the first line says whether all is well
  status.json       the same for programs:                jq .healthy status.json
  checks/PATH       the five checks of a file, made now:  cat checks/tasks/plan.md
  failures/         one file for each damage that was found
  recoveries.jsonl  each attempt to recover something:    tail -f recoveries.jsonl
  audit.jsonl       each change of the store, who made it and what it made:
                                                          tail -n 100 audit.jsonl | jq -c '[.time,.agent,.operation,.path]'
  events            what happens from now on; cat waits until there is something new
  checkpoint        the signed head of the audit log; keep copies elsewhere, and
                    holdfast audit verify --since-checkpoint FILE tells whether anybody has rewritten history since
  proof/PATH        a proof that the newest version of a file is in the audit log
  manual/           what could not be healed: a page for each thing says what is broken, what was tried and what to do;
                                                          cp good-copy manual/SHA256    puts it right
  scrub             how far the check of everything is;   echo start > scrub  (or pause, resume, stop)
`
