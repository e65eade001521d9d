// What some lanes of a warp do together, named by a mask: the shuffles, votes and __syncwarp of CUDA C++.
// Lanes that have returned are not waited for; which line a lane comes from does not matter.
#include "grid.h"
#include "modes.h"

#include <algorithm>
#include <cstring>

namespace emulator {
namespace {

constexpr int kLaunchFailed = 719;
constexpr const char* kActive = "__activemask";

// Finds the gathering of these lanes that this one has not come to yet.
Gathering* open_of(Warp& warp, uint32_t mask, uint32_t own) {
    for (Gathering* each : warp.gatherings)
        if (each->mask == mask && !(each->lanes.come & own)) return each;
    warp.gatherings.push_back(new Gathering{mask, "", {}, 0, 0});
    return warp.gatherings.back();
}

bool is_whole(const Warp& warp, const Gathering& gathering) {
    const uint32_t there = warp.size == kLanes ? ~0u : (1u << warp.size) - 1;
    return gathering.lanes.come == (gathering.mask & there & ~warp.returned);
}

void end(Warp& warp, Gathering& gathering) {
    gathering.left = unsigned(__builtin_popcount(gathering.lanes.come));
    auto& open = warp.gatherings;
    open.erase(std::find(open.begin(), open.end(), &gathering));
    progress++;
    for (unsigned lane = 0; lane < warp.size; lane++)
        if (gathering.lanes.come >> lane & 1 && warp.lanes[lane].state == State::AtMeeting)
            ready(warp.lanes[lane]);
}

Lanes gather(const char* what, uint32_t mask, uint64_t value, Site site, bool orders) {
    Thread& me = current();
    Warp& warp = *me.team;
    const uint32_t own = 1u << me.lane;
    if (!(mask & own))
        fail(kLaunchFailed, site,
             std::string(what) + " with a mask that is without the calling lane, " +
                 std::to_string(me.lane));
    Gathering* all = open_of(warp, mask, own);
    if (*all->what && std::strcmp(all->what, what) != 0)
        fail(kLaunchFailed, site,
             std::string("divergent: in ") + what + ", but other lanes of its mask in " + all->what);
    all->what = what;
    all->lanes.come |= own;
    all->lanes.values[me.lane] = value;
    me.polled = nullptr;
    if (orders) sanitizer::release(&all->token);
    if (is_whole(warp, *all))
        end(warp, *all);
    else
        wait(State::AtMeeting, what, site);
    if (orders) sanitizer::acquire(&all->token);
    const Lanes lanes = all->lanes;
    if (--all->left == 0) delete all;
    return lanes;
}

}  // namespace

Lanes gather(const char* what, uint32_t mask, uint64_t value, Site site) {
    return gather(what, mask, value, site, false);
}

void sync_lanes(uint32_t mask, Site site) { gather("__syncwarp", mask, 0, site, true); }

unsigned check_lane(const Lanes& lanes, const char* what, unsigned lane, Site site) {
    if (lane < kLanes && lanes.come >> lane & 1) return lane;
    fail(kLaunchFailed, site,
         std::string(what) + " reads lane " + std::to_string(lane) + " of warp " +
             std::to_string(current().warp) + ", which is not in the mask or has returned");
}

void lane_returns(Thread& thread) {
    Warp& warp = *thread.team;
    warp.returned |= 1u << thread.lane;
    const std::vector<Gathering*> open = warp.gatherings;
    for (Gathering* each : open)
        if (is_whole(warp, *each)) end(warp, *each);
}

// Those that come to this line while no lane of the warp can do anything else; under shuffled schedules
// a lane is alone, which CUDA allows at any time.
uint32_t active_lanes(Site site) {
    Thread& me = current();
    if (modes().order == Order::Shuffled) return 1u << me.lane;
    me.team->asking = true;
    wait(State::AtMeeting, kActive, site);
    return me.active;
}

void answer_active(Warp& warp) {
    warp.asking = false;
    for (unsigned lane = 0; lane < warp.size; lane++) {
        Thread& me = warp.lanes[lane];
        if (me.state != State::AtMeeting || me.doing != kActive) continue;
        me.active = 0;
        for (unsigned other = 0; other < warp.size; other++) {
            const Thread& its = warp.lanes[other];
            const bool with_me = other == lane || (other > lane && its.state == State::AtMeeting &&
                                                   its.doing == kActive);
            if (with_me && its.site.line == me.site.line && !std::strcmp(its.site.file, me.site.file))
                me.active |= 1u << other;
        }
        for (unsigned other = lane + 1; other < warp.size; other++)
            if (me.active >> other & 1) warp.lanes[other].active = me.active;
        for (unsigned other = lane; other < warp.size; other++)
            if (me.active >> other & 1) ready(warp.lanes[other]);
    }
}

void stop(int result, const char* why, Site site) { fail(result, site, why); }

}  // namespace emulator
