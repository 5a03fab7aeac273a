/* perf breakpoints of two tasks on one CPU: the host's part of `debugreg check`, with
 *
 *   --policy linux --vcpus 0 --events open,close,switch,access,toggle --slots S --counters C --addresses A
 *
 * and without symmetry. Written from the rules of Linux (kernel/events/core.c, kernel/events/hw_breakpoint.c and
 * arch/x86/kernel/hw_breakpoint.c, 6.12), not from the Rust model: what can be told apart is the same, so that as many
 * distinct states and as many transitions must come out. bench/spin.py gives S, C and A, and an option of the last loop for
 * each event.
 */
#define IDLE 0

typedef Context {
	bool exists;      /* task_struct.perf_event_ctxp */
	byte n;           /* its events, in the order in which they were opened */
	byte addr[C];     /* 1..A */
	bool on[C];       /* PERF_EVENT_STATE_INACTIVE or ACTIVE, not OFF */
	byte slot[C];     /* 1..S while in a register, else 0 */
}

Context ctx[3];        /* that of the idle task stays empty */
byte running;         /* 0 is the idle task */
byte dr[S];           /* what was last written to DR0..: an uninstall leaves it */
bool armed[S];        /* DR7 */

hidden byte i, j, s;
hidden byte owed, hits;

inline out_one(t, e) {          /* arch_uninstall_hw_breakpoint */
	if
	:: ctx[t].slot[e] > 0 -> armed[ctx[t].slot[e] - 1] = false; ctx[t].slot[e] = 0
	:: else -> skip
	fi
}

inline in_one(t, e) {           /* arch_install_hw_breakpoint: the first slot that is free */
	s = 0;
	do
	:: s < S && armed[s] -> s++
	:: else -> break
	od;
	if
	:: s < S -> dr[s] = ctx[t].addr[e]; armed[s] = true; ctx[t].slot[e] = s + 1
	:: else -> skip
	fi
}

inline sched_out(t) {
	i = 0;
	do
	:: i < ctx[t].n -> out_one(t, i); i++
	:: else -> break
	od
}

inline sched_in(t) {
	i = 0;
	do
	:: i < ctx[t].n ->
		if
		:: ctx[t].on[i] -> in_one(t, i)
		:: else -> skip
		fi;
		i++
	:: else -> break
	od
}

inline resched(t) { sched_out(t); sched_in(t); i = 0; s = 0 }

inline open_event(t, a) {
	if
	:: ctx[t].n >= S       /* fetch_bp_busy_slots: ENOSPC */
	:: else ->
		ctx[t].exists = true;
		ctx[t].addr[ctx[t].n] = a; ctx[t].on[ctx[t].n] = true; ctx[t].n++;
		if
		:: running == t -> resched(t)
		:: else -> skip
		fi
	fi
}

inline close_event(t, e) {
	out_one(t, e);
	j = e;
	do
	:: j + 1 < ctx[t].n ->
		ctx[t].addr[j] = ctx[t].addr[j + 1]; ctx[t].on[j] = ctx[t].on[j + 1]; ctx[t].slot[j] = ctx[t].slot[j + 1]; j++
	:: else -> break
	od;
	ctx[t].n--;
	ctx[t].addr[ctx[t].n] = 0; ctx[t].on[ctx[t].n] = false; ctx[t].slot[ctx[t].n] = 0; j = 0
}

inline toggle(t, e) {
	if
	:: ctx[t].on[e] -> out_one(t, e); ctx[t].on[e] = false
	:: else ->
		ctx[t].on[e] = true;
		if
		:: running == t -> resched(t)
		:: else -> skip
		fi
	fi
}

inline switch_to(t) {
	if
	:: running != IDLE -> sched_out(running)
	:: else -> skip
	fi;
	running = t;
	if
	:: t != IDLE -> sched_in(t)
	:: else -> skip
	fi;
	i = 0; s = 0
}

/* A store of the running task to one of the addresses: it hits if and only if an event of the task watches it. */
inline store(t, a) {
	owed = false; hits = false;
	i = 0;
	do
	:: i < ctx[t].n -> owed = owed || (ctx[t].on[i] && ctx[t].addr[i] == a); i++
	:: else -> break
	od;
	s = 0;
	do
	:: s < S -> hits = hits || (armed[s] && dr[s] == a); s++
	:: else -> break
	od;
	assert(owed == hits);
	i = 0; s = 0
}

#define LIVE (ctx[1].n + ctx[2].n)

active proctype machine() {
	do
	:: d_step { running != IDLE -> switch_to(IDLE) }
	:: d_step { running != 1 -> switch_to(1) }
	:: d_step { running != 2 -> switch_to(2) }
	/* EVENTS */
	od
}
